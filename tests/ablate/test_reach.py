"""Steps until a variant reaches the first one's score, from real journals."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rb.ablate import reach
from rb.ablate.plan import Plan, read_plan
from rb.core.config import FoundationConfig
from rb.core.run_file import to_tree
from rb.core.run_layout import RUN_JOURNAL
from rb.tracking.journal import Journal
from tests.support import tiny

SCORE = "val/image_region/CIDEr"


@pytest.fixture
def files(tmp_path: Path, foundation: FoundationConfig) -> tuple[Path, dict]:
    """A run file and the tree of a plan: one stage, and two stages of half the steps each."""
    sources = {"image_region": [{"manifest": "somewhere"}]}
    run = {
        "model": to_tree(tiny.model_config(foundation, train_modalities=("image_region",))),
        "data": {"train": sources, "val": sources},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    halves = [["train.max_steps=20", "validation.every=0"], ["train.max_steps=20"]]
    plan = {
        "run": str(tmp_path / "run.yaml"),
        "overrides": ["train.max_steps=40", "validation.every=10"],
        "seeds": [0, 1],
        "reach": "CIDEr",
        "evaluate": {"image_region": {"data": "somewhere"}},
        "variants": {"one": None, "two": {"stages": halves}},
    }
    return tmp_path / "plan.yaml", plan


def written(path: Path, tree: dict) -> Plan:
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return read_plan(path)


def journal(out: Path, run: str, values: dict[int, float]) -> None:
    made = Journal(out / "runs" / run / RUN_JOURNAL)
    for step, value in values.items():
        made.metrics(step, {SCORE: value, "train/lr": 1.0})
    made.close()


def test_steps_are_counted_over_stages_and_seeds_are_compared_with_themselves(
    files: tuple[Path, dict], tmp_path: Path
) -> None:
    plan, out = written(*files), tmp_path / "out"
    journal(out, "one-seed0", {10: 0.2, 20: 0.5, 30: 0.7, 40: 0.6})
    journal(out, "one-seed1", {10: 0.2, 40: 0.9})
    journal(out, "two-seed0", {10: 0.1, 20: 0.61})
    journal(out, "two-seed1", {10: 0.3, 20: 0.8})
    one, two = reach.collect(plan, out)
    assert one["steps"] == {"0": 30, "1": 40}
    assert two["targets"] == {"0": 0.6, "1": 0.9}
    assert two["steps"] == {"0": 40, "1": None}  # 20 steps of stage 1 and 20 of stage 2; never
    assert two["trained"] == 40
    assert two["best"] == {"0": 0.61, "1": 0.8}
    text = "\n".join(reach.format_reach(plan, [one, two]))
    assert "| image region | two | 40 | 40, - | 70.5 | 70.5 |" in text


def test_a_seed_that_is_not_trained_yet_is_left_out(files: tuple[Path, dict], tmp_path: Path) -> None:
    plan, out = written(*files), tmp_path / "out"
    journal(out, "one-seed0", {40: 0.6})
    one, two = reach.collect(plan, out)
    assert (one["steps"], two["steps"]) == ({"0": 40}, {})
    assert "| two | 0 |  | - | - |" in "\n".join(reach.format_reach(plan, [one, two]))


def test_a_plan_without_reach_has_no_such_table(files: tuple[Path, dict], tmp_path: Path) -> None:
    path, tree = files
    del tree["reach"]
    plan = written(path, tree)
    assert reach.format_reach(plan, reach.collect(plan, tmp_path)) == []


def test_reach_without_validation_is_refused(files: tuple[Path, dict]) -> None:
    path, tree = files
    tree["overrides"] = ["train.max_steps=40"]
    with pytest.raises(ValueError, match=r"one: reach needs validation\.every and held-out manifests in data\.val"):
        written(path, tree)
