"""`rb reproduce table1`: missing files are named; the paper's values are what is expected. Planted faults: tests/drill/test_reproduce.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rb.cli import main as rb
from rb.core.install import project_file
from rb.jobs.plan import read_plan
from rb.jobs.table import paper_scores


def test_missing_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RB_WEIGHTS", "RB_DATA", "RB_RELEASED"):
        monkeypatch.setenv(name, f"/nowhere/{name}")
    assert rb(["reproduce", "table1", "--limit", "200", "--out", str(tmp_path), "--json"]) == 1
    found = {verdict["cell"]: verdict for verdict in json.loads(capsys.readouterr().out)}
    assert len(found) == 15
    assert {verdict["state"] for verdict in found.values()} == {"NOT RUN"}
    lines = found["blip_2_opt_2.7b-coco-base"]["lines"]
    assert "missing: /nowhere/RB_DATA/coco_test (tasks.coco.data)" in lines
    assert "missing: /nowhere/RB_WEIGHTS/blip2-opt-2.7b (model.foundation.blip2)" in lines
    assert found["released-refcoco-ours"]["lines"][0] == "missing: /nowhere/RB_RELEASED (models.released.checkpoint)"
    assert rb(["reproduce", "table1", "--rows", "released", "--out", str(tmp_path)]) == 1
    assert "0 PASS, 0 FAIL, 3 NOT RUN" in capsys.readouterr().out


def test_the_papers_values_are_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RB_WEIGHTS", "RB_DATA", "RB_RELEASED"):
        monkeypatch.setenv(name, "/somewhere")
    file = project_file("launch/evaluations/table1.yaml")
    assert file is not None
    plan = read_plan(file)
    expected = {cell.name: paper_scores(plan, cell) for cell in plan.cells}
    assert expected["blip_2_opt_2.7b-coco-base"] == {"CIDEr": 130.7, "SPICE": 23.8}
    assert expected["blip_2_flant5_xxl-refcoco-crops"] == {"CIDEr": 22.3, "SPICE": 14.4}
    released = [expected[f"released-{task}-ours"]["CIDEr"] for task in ("refcoco", "objaverse", "scanrefer")]
    assert released == [63.5, 112.7, 57.0]
    answers = [scores for name, scores in expected.items() if "-vqav2-" in name]
    assert answers == [{"accuracy_lavis": value} for value in (51.88, 54.01, 63.13, 65.11)]
    assert all(set(scores) == {"CIDEr", "SPICE"} for scores in expected.values() if scores not in answers)
    assert all(
        set(task.tolerance) == ({"accuracy_lavis"} if task.task == "vqa" else {"CIDEr", "SPICE"})
        for task in plan.tasks.values()
    )
