"""Numbers that are not finite, in every loss term and in the gradient alone, of every modality that trains, on either of two ranks.

One training of two ranks; every second step of a modality has one sample that spoils one term. What holds: parameters, moments and update counts of such a
step are those of the step before it, bit for bit; the counts are exact; ``rb replay`` names the sample, the rank and the term, and its other losses are
those of the journal within 1e-6. The same for a cloud whose coordinates are too large for the point encoder, which nothing in a shard forbids.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rb.core.config import FoundationConfig
from rb.core.loss_terms import LOSS_TERMS
from rb.core.metric_names import GRADIENT
from rb.core.modality import IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION, modality_spec
from rb.tracking import metric_points
from rb.tracking.bad_steps import BadStep, read_bad_steps
from rb.training.replay import replay
from tests.support import poison, small_data
from tests.support.bad_run import RANKS, apart, bad_run, moved, state_at
from tests.support.trials import Figures

MODALITIES = (IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION)
STEPS = 110  # enough for every case
Case = tuple[str, str, int]  # modality, term, rank


def cases_of(modality: str) -> list[Case]:
    terms = [term.name for term in LOSS_TERMS.values() if term.applies(modality_spec(modality))]
    return [(modality, term, rank) for term in (*terms, GRADIENT) for rank in range(RANKS)]


CASES = {case: number for modality in MODALITIES for number, case in enumerate(cases_of(modality))}


def position_of(case: Case) -> int:
    """Of the sample that is spoiled: in the second, fourth, ... step of its modality, in the first or second micro-batch of the rank."""
    number, rank = CASES[case], case[2]
    return (2 * number + 1) * 4 + rank + 2 * (number % 2)


PLAN: poison.Plan = {(case[0], position_of(case)): case[1] for case in CASES}


@pytest.fixture(scope="module")
def run_dir(foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every second step of each modality is a bad one."""
    folder = tmp_path_factory.mktemp("bad_numbers")
    return bad_run(foundation, folder, PLAN, MODALITIES, max_steps=STEPS, max_bad_steps=STEPS)[0]


def bad_step(run_dir: Path, case: Case) -> BadStep:
    """The record of a case's step."""
    found = [
        bad
        for bad in read_bad_steps(run_dir / "journal.jsonl")
        if bad.modality == case[0] and any(position_of(case) in rank.positions for rank in bad.ranks)
    ]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_a_case(run_dir: Path, case: Case, figures: Figures) -> None:
    _, term, rank = case
    bad = bad_step(run_dir, case)
    assert moved(state_at(run_dir, bad.step - 1), state_at(run_dir, bad.step)) == []
    hit = {number: one.bad_terms for number, one in enumerate(bad.ranks) if one.bad_terms}
    if term == "itc":  # of a whole pool, which both ranks make together, but for samples of the same object
        assert rank in hit
        assert all(terms == ["itc"] for terms in hit.values())
    else:
        assert hit == ({} if term == GRADIENT else {rank: [term]})
    with poison.poisoned(PLAN):
        found = replay(run_dir, bad.step)
    figures["relative difference of losses"] = apart(found)
    assert figures["relative difference of losses"] < 1e-6
    (suspect,) = found.suspects
    assert (suspect.rank, suspect.position) == (rank, position_of(case))
    assert suspect.id == bad.ranks[rank].ids[bad.ranks[rank].positions.index(suspect.position)]
    if term == GRADIENT:
        assert found.bad_terms == [[], []]
        assert set(suspect.why.parameters) & set(found.bad_gradients)
    elif term == "itc":
        assert suspect.why.stage == "ITC vectors of the input"
    else:
        assert suspect.why.terms == (term,)


def test_counts_and_the_steps_between(run_dir: Path) -> None:
    """The counts are those of the plan; a good step moves something, so that "nothing moved" can fail."""
    bad = {bad_step(run_dir, case).step: case for case in CASES}
    expected: Counter[str] = Counter({"train/skipped_steps": len(CASES)})
    for modality, term, _ in bad.values():
        expected[f"train/{modality}/skipped_steps"] += 1
        expected[f"train/{modality}/nonfinite_{term}"] += 0 if term == "itc" else 1
    for one in read_bad_steps(run_dir / "journal.jsonl"):
        expected[f"train/{one.modality}/nonfinite_itc"] += sum("itc" in rank.bad_terms for rank in one.ranks)
    points = metric_points(run_dir / "journal.jsonl")
    counted = {name: series[-1].value for name, series in points.items() if "nonfinite" in name or "skipped" in name}
    assert counted == expected
    good = next(step for step in range(2, 1000) if step not in bad and step - 1 in bad)
    assert moved(state_at(run_dir, good - 1), state_at(run_dir, good))
    found = replay(run_dir, good)
    assert found.finite
    assert apart(found) < 1e-6


@pytest.mark.parametrize(("ranks", "pool"), [(1, 4), (2, 4), (4, 2), (4, 4)])
@pytest.mark.parametrize("negatives", ["global", "local"])
def test_other_layouts(
    foundation: FoundationConfig, tmp_path: Path, ranks: int, pool: int, negatives: str, figures: Figures
) -> None:
    """Pools of one rank's or two ranks' several micro-batches, of half of the ranks, and of all: a sample that spoils ITC, one that spoils gradients."""
    run_dir, _ = bad_run(
        foundation,
        tmp_path,
        {(IMAGE_REGION, 5): "itc", (IMAGE_REGION, 13): GRADIENT},
        (IMAGE_REGION,),
        model={"itm_negatives": negatives},
        ranks=ranks,
        contrastive_batch_size=pool,
        max_steps=5,
    )
    with poison.poisoned({(IMAGE_REGION, 5): "itc", (IMAGE_REGION, 13): GRADIENT}):
        found = {step: replay(run_dir, step) for step in range(1, 6)}
    assert [step for step, one in found.items() if not one.finite] == [2, 4]
    assert [suspect.position for one in found.values() for suspect in one.suspects] == [5, 13]
    assert [one.step for one in read_bad_steps(run_dir / "journal.jsonl")] == [2, 4]
    assert read_bad_steps(run_dir / "journal.jsonl")[1].counts() == {GRADIENT: 1}
    figures["relative difference of losses"] = max(map(apart, found.values()))
    assert figures["relative difference of losses"] < 1e-6


def test_a_cloud_that_is_too_large(
    foundation: FoundationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    ordinary = small_data.cloud

    def cloud(seed: int, *sizes: int) -> np.ndarray:
        points = ordinary(seed, *sizes)
        if seed == 3:
            points[5] = 3e38
        return points

    monkeypatch.setattr(small_data, "cloud", cloud)
    run_dir, _ = bad_run(
        foundation, tmp_path, {}, (POINT_CLOUD_REGION,), model={"cloud_frame": "metres"}, max_steps=8, max_bad_steps=9
    )
    bad = read_bad_steps(run_dir / "journal.jsonl")
    assert 1 <= len(bad) < 8
    for one in bad:
        assert moved(state_at(run_dir, one.step - 1), state_at(run_dir, one.step)) == [] if one.step > 1 else True
        found = replay(run_dir, one.step)
        assert {suspect.id.partition("#")[0] for suspect in found.suspects} == {f"{POINT_CLOUD_REGION}/3.x"}
        assert {suspect.why.stage for suspect in found.suspects} <= {"input", "features of the frozen encoder"}
    figures["bad steps"] = len(bad)
