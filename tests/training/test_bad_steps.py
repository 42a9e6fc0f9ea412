"""Steps whose numbers are not finite, on two ranks: nothing moves, samples and terms are written down, counts go on over a resume, an abort saves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from rb.checkpoints import checkpoint
from rb.core.config import FoundationConfig
from rb.core.metric_names import GRADIENT
from rb.core.run_file import to_tree
from rb.tracking import metric_points
from rb.tracking.bad_steps import BadCounts, BadStep, RankLosses, read_bad_steps
from rb.tracking.journal import Journal
from tests.support import poison, small_data, tiny
from tests.support.processes import finish, start_ranks

REGION, CLOUD = "image_region", "point_cloud"
# A step has 4 samples, on two ranks of 2 micro-batches of 1, in pools of 2: rank 0 has the positions 0 and 2 of it, rank 1 has 1 and 3.
# Steps 1, 3, 5 are of regions, 2, 4, 6 of clouds.
PLAN: poison.Plan = {(CLOUD, 2): "itg", (REGION, 9): "itc", (CLOUD, 11): GRADIENT}
STEPS = {
    2: (CLOUD, "itg", [0]),
    5: (REGION, "itc", [0, 1]),
    6: (CLOUD, GRADIENT, []),
}  # step -> what is not finite, on which ranks


@pytest.fixture(scope="module")
def aborted(foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that ended after step 6 of 8, the second bad step in a row."""
    folder = tmp_path_factory.mktemp("bad_steps")
    small_data.write_set(folder / "regions", REGION, 10)
    small_data.write_set(folder / "clouds", CLOUD, 7)
    tree = {
        "name": "run",
        "output_dir": str(folder / "runs"),
        "model": to_tree(tiny.model_config(foundation)),
        "data": {
            "train": {REGION: [{"manifest": str(folder / "regions")}], CLOUD: [{"manifest": str(folder / "clouds")}]},
            "num_workers": 0,
        },
        "optim": {"lr": 1e-3, "warmup_steps": 0},
        "train": {
            "schedule": "round_robin",
            "global_batch_size": 4,
            "micro_batch_size": 1,
            "contrastive_batch_size": 2,
            "max_steps": 8,
            "max_bad_steps": 2,
            "log_every": 1,
            "checkpoint_every": 1,
            "keep_checkpoints": 20,
            "ds_config": "ds_configs/zero2_cpu.json",
            "num_threads": 1,
            "timeout_s": 60,
        },
        "tracking": {"mlflow": False},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    plan = poison.write(PLAN, folder / "plan.json")
    output = finish(*start_ranks(2, "tests.support.poison", plan, "--run", folder / "run.yaml"), code=3)
    assert (
        "stopped: 2 steps in a row with a loss or gradient that is not finite; no parameter has moved since step 4"
        in output
    )
    return folder / "runs" / "run"


def state_at(run_dir: Path, step: int) -> checkpoint.TrainState:
    return checkpoint.load_state(checkpoint.require(run_dir / "checkpoints" / f"step_{step:07}"))


def moved(one: checkpoint.TrainState, other: checkpoint.TrainState) -> list[str]:
    """What differs between two states, in any bit."""
    return [
        f"{kind} {name}"
        for kind in checkpoint.KINDS
        for name, value in one.tensors[kind].items()
        if not torch.equal(value, other.tensors[kind][name])
    ]


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
def test_a_resume_goes_on_after_them_and_counts_on(aborted: Path) -> None:
    before = (aborted / "journal.jsonl").read_bytes()
    finish(*start_ranks(1, "rb.train", "--resume", aborted))
    points = metric_points(aborted / "journal.jsonl")
    assert [(p.step, p.value) for p in points["train/skipped_steps"]][-4:] == [(5, 2), (6, 3), (7, 3), (8, 3)]
    assert points[f"train/{REGION}/nonfinite_itc"][-1].value == 2
    assert (aborted / "journal.jsonl").read_bytes().startswith(before)


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
