"""`rb evaluate`: cells, the table, what is missing, kills, damage, several processes, checkpoints as they come."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rb.cli import main as rb
from rb.core import child_commands
from rb.core.config import FoundationConfig
from rb.core.run_layout import RUN_END
from rb.evaluation.java import STARTS
from rb.inference import load
from rb.jobs import watch
from rb.jobs.plan import read_plan
from tests.support import exported
from tests.support.evaluation_world import STEP, damage, evaluate, kill_and_go_on, tables, write_plan, write_world
from tests.support.processes import Forked, finish, start_function

CELLS = (
    "tiny-refcoco-ours",
    "tiny-refcoco-shuffled",
    "tiny-clouds-ours",
    "other_run-refcoco-ours",
    "other_run-refcoco-shuffled",
    "other_run-clouds-ours",
    "foundation-refcoco-base",
    "foundation-refcoco-crops",
)


@pytest.fixture(scope="module")
def plan(foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("plan"), foundation)


@pytest.fixture(scope="module")
def whole(plan: Path) -> Path:
    """The output folder of a job that nobody disturbed."""
    out = plan.parent / "whole"
    finish(start_function(evaluate, plan, out))
    return out


def words(plan: Path, out: Path, *more: str) -> list[str]:
    return ["evaluate", "--plan", str(plan), "--out", str(out), "--no-mlflow", *more]


def cells_of(out: Path) -> dict[str, dict[str, Any]]:
    return {cell["cell"]: cell for cell in json.loads((out / "table.json").read_text())["cells"]}


def test_every_cell_has_the_scores_of_rb_predict_and_rb_score(plan: Path, whole: Path, tmp_path: Path) -> None:
    found = cells_of(whole)
    assert tuple(found) == CELLS
    said = tmp_path / "said.jsonl"
    job = [
        "--checkpoint",
        str(plan.parent / "other"),
        "--data",
        str(plan.parent / "regions"),
        "--modality",
        "image_region",
        "--shuffle-boxes",
    ]
    assert (
        rb(["predict", *job, "--out", str(said), "--batch-size", "4", "decode.num_beams=1", "decode.max_new_tokens=4"])
        == 0
    )
    assert (
        rb(["score", str(said), "--no-mlflow", "--metrics", "CIDEr", "BLEU-4", "--out", str(tmp_path / "scores.json")])
        == 0
    )
    alone = json.loads((tmp_path / "scores.json").read_text())
    cell = found["other_run-refcoco-shuffled"]
    assert cell["scores"] == {name: 100 * value for name, value in alone["scores"].items() if value is not None}
    assert (whole / "predictions" / "other_run-refcoco-shuffled.jsonl").read_bytes() == said.read_bytes()
    assert found["tiny-refcoco-ours"]["paper"] == {"CIDEr": 63.5, "SPICE": 21.3}
    assert found["foundation-refcoco-crops"]["paper"]["CIDEr"] == 15.1
    text = (whole / "table.txt").read_text()
    assert text.startswith("8 cells: 8 scored; scores times 100.")
    assert "regions without another box" in text


def test_one_model_in_memory_and_one_java_process_for_all(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built: list[object] = []
    make = load.build_model
    monkeypatch.setattr(load, "build_model", lambda *args: built.append(args) or make(*args))
    before = STARTS.copy()
    assert rb(words(plan, tmp_path)) == 0
    # Three models: the second run's parameters are put into the first one's frozen part.
    assert len(built) == 2
    assert "other run: its trained parameters put in" in capsys.readouterr().err
    assert set((STARTS - before).values()) == {1}
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("[pm]*/*")}
    assert rb(words(plan, tmp_path)) == 0
    assert len(built) == 2, "nothing was missing"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("[pm]*/*")} == files
    # Other metrics: the predictions stay.
    assert rb(words(write_plan(plan.parent, tmp_path / "plan.yaml", metrics=["CIDEr"]), tmp_path)) == 0
    assert len(built) == 2
    assert set(cells_of(tmp_path)["tiny-clouds-ours"]["scores"]) == {"CIDEr"}


@pytest.mark.dist
def test_killed_at_random_moments_the_table_has_the_same_bytes(plan: Path, whole: Path, tmp_path: Path) -> None:
    """More moments: tests/drill/test_evaluation.py."""
    kill_and_go_on(plan, tmp_path, moments=2, seed=1)
    assert tables(tmp_path) == tables(whole)


@pytest.mark.dist
def test_jobs_share_the_models(plan: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_commands, "subprocess", SimpleNamespace(Popen=Forked))
    assert rb(words(plan, tmp_path, "--jobs", "2")) == 0
    assert tables(tmp_path) == tables(whole)


def test_a_damaged_checkpoint_fails_alone(
    plan: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(plan.parent / "other", tmp_path / "other")
    damage(tmp_path / "other")
    models = {
        "tiny": {"checkpoint": f"{plan.parent}/tiny", "paper": "OPT-2.7B"},
        "other run": {"checkpoint": f"{tmp_path}/other/{STEP}"},
    }
    damaged = write_plan(plan.parent, tmp_path / "plan.yaml", models=models)
    assert rb(words(damaged, tmp_path / "out")) == 1
    found, sound = cells_of(tmp_path / "out"), cells_of(whole)
    for name, cell in found.items():
        if cell["model"] == "tiny":
            assert cell == sound[name]
        else:
            assert cell["state"] == "failed"
            assert "altered, its sha256 is not the recorded one" in cell["cause"]
    assert f"FAILED other run, ours: {tmp_path}/other/{STEP}" in capsys.readouterr().out
    # Once it is put back, what is missing is made.
    shutil.copytree(plan.parent / "other", tmp_path / "other", dirs_exist_ok=True)
    assert rb(words(damaged, tmp_path / "out")) == 0
    assert {name: cells_of(tmp_path / "out")[name]["scores"] for name in found} == {
        name: sound[name]["scores"] for name in found
    }


def test_a_cell_of_data_that_is_gone_fails_alone(plan: Path, tmp_path: Path) -> None:
    tasks = {
        "clouds": {"data": f"{plan.parent}/clouds", "modality": "point_cloud", "limit": 2},
        "rooms": {"data": f"{plan.parent}/clouds", "modality": "point_cloud_region"},
        "gone": {"data": f"{tmp_path}/gone", "modality": "point_cloud"},
    }
    models = {"tiny": {"checkpoint": f"{plan.parent}/tiny"}}
    assert rb(words(write_plan(plan.parent, tmp_path / "plan.yaml", models=models, tasks=tasks), tmp_path / "out")) == 1
    found = cells_of(tmp_path / "out")
    assert [cell["state"] for cell in found.values()] == ["scored", "failed", "failed"]
    assert str(tmp_path / "gone") in found["tiny-gone-ours"]["cause"]


def test_one_cell_by_its_number(plan: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rb(["evaluate", "--plan", str(plan), "--list"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{number}  {name}" for number, name in enumerate(CELLS)]
    assert rb(words(plan, tmp_path, "--only", "5")) == 0
    found = cells_of(tmp_path)
    assert {name for name, cell in found.items() if cell["state"] == "scored"} == {CELLS[5]}
    assert found[CELLS[5]] == cells_of(whole)[CELLS[5]]


def test_checkpoints_are_scored_as_they_come(
    plan: Path, tmp_path: Path, foundation: FoundationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "POLL_S", 0.05)
    run = exported.make_run(tmp_path, foundation)
    task = {"data": f"{plan.parent}/clouds", "modality": "point_cloud", "limit": 2, "decode": {"num_beams": 1}}
    path = write_plan(plan.parent, tmp_path / "plan.yaml", models={}, tasks={"clouds": task})
    out = tmp_path / "out"

    def train() -> None:
        first = out / "cells" / f"step_{exported.STEP:07d}-clouds-ours.json"
        while not first.is_file():
            time.sleep(0.02)
        shutil.copytree(run / STEP, run / "checkpoints" / "step_0000009")
        (run / RUN_END).write_text("{}")

    training = threading.Thread(target=train)
    training.start()
    assert rb(words(path, out, "--watch", str(run))) == 0
    training.join()
    assert [cell["state"] for cell in cells_of(out).values()] == ["scored", "scored"]
    # What was scored stays when the training has deleted it.
    shutil.rmtree(run / STEP)
    assert rb(words(path, out, "--watch", str(run))) == 0
    assert list(cells_of(out)) == [f"step_{exported.STEP:07d}-clouds-ours", "step_0000009-clouds-ours"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tasks": {}}, "tasks: must name at least one"),
        ({"models": {"a": {}}}, "models.a: give either checkpoint"),
        ({"models": {"a": {"base": "x"}, "A": {"base": "y"}}}, "two names give the same file name"),
        ({"models": {"a": {"base": "x", "paper": "OPT"}}}, "models.a.paper: OPT is no model of the paper"),
        ({"tasks": {"t": {"data": "x", "modality": "sound"}}}, "unknown modality 'sound'"),
        ({"tasks": {"t": {"data": "x", "modality": "image", "variants": ["shuffled"]}}}, "has no boxes to shuffle"),
        ({"tasks": {"t": {"data": "x", "modality": "image", "variants": ["mine"]}}}, "tasks.t.variants: mine"),
        (
            {"tasks": {"t": {"data": "x", "modality": "image", "decode": {"beams": 3}}}},
            "unknown key 'tasks.t.decode.beams'",
        ),
        ({"tasks": {"t": {"data": "x", "modality": "image", "decoding": "theirs"}}}, "decoding: theirs"),
        ({"metrics": ["CIDer"]}, "metrics: CIDer is unknown"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_in_one_line(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], says: str
) -> None:
    path = write_plan(plan.parent, tmp_path / "plan.yaml", **changes)
    assert rb(words(path, tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert str(path) in said
    assert says in said
    assert said.count("\n") == 1


def test_the_projects_own_plans_are_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RB_WEIGHTS", "RB_DATA", "RB_RELEASED"):
        monkeypatch.setenv(name, "/somewhere")
    folder = Path(__file__).resolve().parents[2] / "launch" / "evaluations"
    assert all(read_plan(path).cells for path in folder.glob("*.yaml"))
