"""Numbers that are not finite, on two ranks: nothing moves, samples and terms are written down and counted, an abort saves, a replay names them."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rb.cli import main as cli
from rb.core.config import FoundationConfig
from rb.core.files import file_sha256
from rb.core.metric_names import GRADIENT
from rb.model import loss_terms
from rb.model.encoded import Encoded
from rb.model.weights.build import build_model
from rb.tracking import metric_points
from rb.tracking.bad_steps import BadCounts, BadStep, RankLosses, read_bad_steps
from rb.tracking.journal import Journal
from rb.training.replay import Replay, replay
from rb.training.suspects import POOL_STAGE, find_suspects
from tests.support import poison, tiny
from tests.support.bad_run import apart, bad_run, moved, state_at
from tests.support.processes import finish, start_function, start_ranks
from tests.support.remedies import Said, remedy, typed

REGION, CLOUD, OUTPUT = "image_region", "point_cloud", "output.txt"
# Steps 1, 3, 5 are of regions, 2, 4, 6 of clouds, 4 samples each; tests/support/bad_run.py says which rank has which.
PLAN: poison.Plan = {(CLOUD, 2): "itg", (REGION, 9): "itc", (CLOUD, 11): GRADIENT}
STEPS = {
    2: (CLOUD, "itg", [0]),
    5: (REGION, "itc", [0, 1]),
    6: (CLOUD, GRADIENT, []),
}  # step -> what is not finite, on which ranks


@pytest.fixture(scope="module")
def aborted(foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that ended after step 6 of 8, the second bad step in a row; read-only."""
    folder = tmp_path_factory.mktemp("bad_steps")
    run_dir, output = bad_run(foundation, folder, PLAN, (REGION, CLOUD), code=3, max_steps=8, max_bad_steps=2)
    assert (
        "stopped: 2 steps in a row with a loss or gradient that is not finite; no parameter has moved since step 4"
        in output
    )
    (run_dir.parent / OUTPUT).write_text(output)
    return run_dir


@pytest.mark.dist
def test_a_bad_step_moves_nothing_and_an_abort_saves_it(aborted: Path) -> None:
    states = {step: state_at(aborted, step) for step in range(1, 7)}  # the last one is of the step that ended the run
    for step in range(2, 7):
        assert (moved(states[step - 1], states[step]) == []) == (step in STEPS), f"step {step}"
    assert json.loads((aborted / "end.json").read_text())["code"] == 3


@pytest.mark.dist
def test_a_bad_step_is_in_the_journal_with_its_samples(aborted: Path) -> None:
    found = read_bad_steps(aborted / "journal.jsonl")
    assert [one.step for one in found] == list(STEPS)
    for bad in found:
        modality, term, ranks = STEPS[bad.step]
        assert bad.modality == modality
        assert [rank for rank, one in enumerate(bad.ranks) if term in one.bad_terms] == ranks
        assert bad.counts() == {term: len(ranks) or 1}
        first = (bad.step - 1) // 2 * 4
        assert [list(one.positions) for one in bad.ranks] == [[first, first + 2], [first + 1, first + 3]]
        assert all(len(one.ids) == 2 and one.ids[0].startswith(modality) for one in bad.ranks)
    values = {name: points[-1].value for name, points in metric_points(aborted / "journal.jsonl").items()}
    counted = {name: value for name, value in values.items() if "nonfinite" in name or "skipped" in name}
    assert counted == {
        "train/skipped_steps": 3,
        f"train/{CLOUD}/skipped_steps": 2,
        f"train/{REGION}/skipped_steps": 1,
        f"train/{CLOUD}/nonfinite_itg": 1,
        f"train/{REGION}/nonfinite_itc": 2,
        f"train/{CLOUD}/nonfinite_grad": 1,
    }


@pytest.mark.dist
@remedy("`rb replay {} {}` says which sample and which term it was, and --resume {} goes on after them")
def test_an_abort_says_how_to_go_on(aborted: Path, tmp_path: Path):
    """The replay names the sample; the resume makes the steps after the bad ones, and counts on."""
    run_dir, runs = tmp_path / "run", [lambda: (aborted.parent / OUTPUT).read_text()]

    def resume() -> str:
        output = finish(*start_ranks(1, "rb.train", "--resume", run_dir))
        points = metric_points(run_dir / "journal.jsonl")
        assert [(p.step, p.value) for p in points["train/skipped_steps"]][-4:] == [(5, 2), (6, 3), (7, 3), (8, 3)]
        assert points[f"train/{REGION}/nonfinite_itc"][-1].value == 2
        return output

    def follow(said: Said) -> None:
        with poison.poisoned(PLAN):
            assert "sample point_cloud/" in typed(*said.found("`rb (replay [^`]*)`").split())
        shutil.copytree(Path(said.found(r"--resume (\S+) goes on")), run_dir)
        runs[0] = resume

    return lambda: runs[0](), follow


def test_rows_that_a_resume_superseded_do_not_count(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    inf, nan = float("inf"), float("nan")
    bad = BadStep(
        3,
        CLOUD,
        (
            RankLosses({"llm": nan, "itg": 1.0, "total": nan}, ["a"], [8]),
            RankLosses({"llm": -inf, "itg": inf, "total": nan}, ["b"], [9]),
        ),
    )
    overflow = BadStep(4, CLOUD, (RankLosses({"llm": 3e38, "itg": 3e38, "total": inf}, ["c"], [10]),))
    for one in (bad, overflow):
        journal.write("bad_step", **one.row())
    read = read_bad_steps(journal.path)
    assert [one.step for one in read] == [3, 4]
    assert [one.row() for one in read] == [bad.row(), overflow.row()]
    assert BadCounts(read).values() == {
        "train/skipped_steps": 2,
        f"train/{CLOUD}/skipped_steps": 2,
        f"train/{CLOUD}/nonfinite_llm": 2,
        f"train/{CLOUD}/nonfinite_itg": 1,
        f"train/{CLOUD}/nonfinite_total": 1,
    }
    journal.truncate_after(3)
    assert [one.step for one in read_bad_steps(journal.path)] == [3]


def again(run_dir: Path, step: int, **options: bool) -> Replay:
    with poison.poisoned(PLAN):
        return replay(run_dir, step, **options)


@pytest.mark.dist
def test_a_good_step_has_the_runs_losses_and_the_folder_stays_as_it_is(
    aborted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: file_sha256(path) for path in aborted.rglob("*") if path.is_file()}
    for step in (1, 3, 4):
        found = again(aborted, step)
        assert found.finite
        assert found.suspects == []
        assert (found.state_step, found.made) == (step - 1, 0)
        assert found.layout.world_size == 2
        assert apart(found) < 1e-6
        assert found.grad_norm == pytest.approx(found.recorded[0]["grad_norm"], rel=1e-5)
    assert cli(["replay", str(aborted), "3", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["finite"]
    assert len(printed["losses"]) == 2
    assert {path: file_sha256(path) for path in aborted.rglob("*") if path.is_file()} == before


@pytest.mark.dist
@pytest.mark.parametrize("step", STEPS)
def test_a_bad_step_names_sample_and_term(aborted: Path, step: int) -> None:
    modality, term, ranks = STEPS[step]
    found = again(aborted, step)
    assert not found.finite
    assert apart(found) < 1e-6  # of what was finite on each rank
    assert [rank for rank, terms in enumerate(found.bad_terms) if term in terms] == ranks
    (bad,) = [one for one in read_bad_steps(aborted / "journal.jsonl") if one.step == step]
    assert found.read == [list(zip(one.ids, one.positions, strict=True)) for one in bad.ranks]
    (suspect,) = found.suspects
    assert (modality, suspect.position) in PLAN
    assert PLAN[modality, suspect.position] == term
    assert suspect.id.startswith(f"{modality}/")
    if term == GRADIENT:
        assert suspect.why.parameters
        assert set(suspect.why.parameters) <= set(found.bad_gradients)
    elif term == "itc":
        assert suspect.why.stage == "ITC vectors of the input"
    else:
        assert suspect.why.terms == (term,)


@pytest.mark.dist
def test_what_a_person_reads(aborted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with poison.poisoned(PLAN):
        assert cli(["replay", str(aborted), "5"]) == 1
    text = capsys.readouterr().out
    assert "step 5 (image_region): 2 rank(s) x 2 micro-batch(es) of 1, ITC and ITM contrast 2" in text
    assert "rank 0: not finite: itc" in text
    assert "(rank 1, micro-batch 0, row 0, position 9)" in text
    assert "not finite from its ITC vectors of the input on" in text


def again_into(file: Path, run_dir: Path, step: int) -> None:
    """``again`` in a process that DeepSpeed may have: it keeps its process group for life."""
    file.write_bytes(pickle.dumps(again(run_dir, step)))


@pytest.mark.dist
def test_steps_between_checkpoint_and_step_are_made_first(aborted: Path, tmp_path: Path) -> None:
    """Steps 1 and 2, of which the second is a bad one, from the run's beginning; then without them."""
    shutil.copytree(aborted, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    finish(start_function(again_into, tmp_path / "found", tmp_path / "run", 3))
    found: Replay = pickle.loads((tmp_path / "found").read_bytes())
    assert (found.state, found.made, found.left_out) == (None, 2, 0)
    assert apart(found) < 1e-5
    older = again(tmp_path / "run", 3, from_checkpoint=True)
    assert (older.state, older.made, older.left_out) == (None, 0, 2)
    assert older.finite
    assert apart(older) > 1e-4


def test_requests_that_cannot_work(aborted: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="step 9: the run has steps 1 to 8"):
        replay(aborted, 9)
    shutil.copy(aborted / "config.yaml", tmp_path)
    with pytest.raises(ValueError, match="does not say on how many ranks step 2 was made"):
        replay(tmp_path, 2)


def test_what_only_a_pair_of_samples_makes_is_found_by_replacing_one_after_another(
    foundation: FoundationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ITM is infinite where a sample meets one certain other in its pool, and fine for each alone."""
    built = build_model(tiny.model_config(foundation), seed=0)
    parts = [tiny.make_batch(CLOUD, built.text, range(first, first + 2)) for first in range(0, 8, 2)]
    itm = loss_terms.FUNCTIONS["itm"]

    def quarrel(encoded: Encoded) -> Tensor:
        negatives = encoded.negatives
        met = {tuple(row.tolist()) for row in negatives.text_ids} | {
            tuple(row.tolist()) for row in encoded.batch.text_ids
        }
        both = all(tuple(parts[1].text_ids[row].tolist()) in met for row in range(2))
        return itm(encoded) * (torch.inf if both and len(encoded.batch) > 1 else 1.0)

    monkeypatch.setitem(loss_terms.FUNCTIONS, "itm", quarrel)
    found = find_suspects(built.model, parts, pool_size=4)
    assert [(one.part, one.row, one.stage) for one in found] == [(1, 0, POOL_STAGE), (1, 1, POOL_STAGE)]
