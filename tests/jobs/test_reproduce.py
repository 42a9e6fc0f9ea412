"""`rb reproduce` on the toy foundation: what is right passes, each planted fault fails with the ids that it changed, missing files are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from rb.cli import main as rb
from rb.core.install import project_file
from rb.jobs.plan import read_plan
from rb.toy.raw.data_sets import write_raw

FAULTS = ("prompt", "image size", "normalisation")
DECODE = {"num_beams": 1, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits of toy images, and a copy of the toy foundation that normalises pixels as others do."""
    folder = tmp_path_factory.mktemp("reproduce")
    write_raw(folder / "raw", 0, {"coco": {"val": 16, "test": 16}})
    for split in ("val", "test"):
        assert (
            rb(["prepare", "coco", "--raw", f"{folder}/raw/coco", "--out", f"{folder}/{split}", "--split", split]) == 0
        )
    toy = project_file("rb/toy/foundation")
    assert toy is not None
    shutil.copytree(toy, folder / "foundation")
    file = folder / "foundation" / "blip2-opt" / "preprocessor_config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]})
    )
    return folder


def write_plan(folder: Path, name: str, **task: Any) -> Path:
    """The right model and the faulty ones on the test split, and the right one on another split that is taken for it."""
    right = {
        "data": f"{folder}/test",
        "modality": "image",
        "variants": ["base"],
        "decode": DECODE,
        "split": "test",
        "examples": 16,
    } | task
    models = {
        "right": {"base": "toy_opt"},
        "prompt": {"base": "toy_opt", "settings": ["model.prompt=not a"]},
        "image size": {"base": "toy_opt", "settings": ["decode.image_size=32"]},
        "normalisation": {"base": "toy_opt", "settings": [f"model.foundation.blip2={folder}/foundation/blip2-opt"]},
    }
    tree = {
        "models": models,
        "tasks": {"coco": right, "split": right | {"data": f"{folder}/val"}},
        "metrics": ["CIDEr"],
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_each_planted_fault_fails(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_plan(world, "first")
    only = ["right-coco-base"]
    assert rb(["evaluate", "--plan", str(first), "--out", str(world / "first"), "--no-mlflow", "--only", *only]) == 0
    (scored,) = [
        cell for cell in json.loads((world / "first" / "table.json").read_text())["cells"] if cell["state"] == "scored"
    ]
    recorded = str(world / "first" / "predictions" / "right-coco-base.jsonl")
    known = {"expect": {"base": scored["scores"]}, "tolerance": {"CIDEr": 0.5}, "recorded": {"base": recorded}}
    capsys.readouterr()
    assert rb(["reproduce", str(write_plan(world, "plan", **known)), "--out", str(world / "out"), "--json"]) == 1
    found = {verdict["cell"]: verdict for verdict in json.loads(capsys.readouterr().out)}
    assert found["right-coco-base"]["state"] == "PASS"
    ids = [json.loads(line)["id"] for line in Path(recorded).read_text().splitlines()]
    for fault in FAULTS:
        verdict = found[f"{fault.replace(' ', '_')}-coco-base"]
        assert verdict["state"] == "FAIL", verdict
        assert any(line.startswith("CIDEr") for line in verdict["lines"])
        assert verdict["differing_ids"]
        assert set(verdict["differing_ids"]) <= set(ids)
    split = found["right-split-base"]
    assert split["state"] == "FAIL"
    assert "split val, expected test" in split["lines"]
    assert not set(split["differing_ids"]) & set(ids)


def test_missing_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RB_WEIGHTS", "RB_DATA", "RB_RELEASED"):
        monkeypatch.setenv(name, f"/nowhere/{name}")
    assert rb(["reproduce", "table1", "--limit", "200", "--out", str(tmp_path), "--json"]) == 1
    found = {verdict["cell"]: verdict for verdict in json.loads(capsys.readouterr().out)}
    assert len(found) == 11
    assert {verdict["state"] for verdict in found.values()} == {"NOT RUN"}
    lines = found["blip_2_opt_2.7b-coco-base"]["lines"]
    assert "missing: /nowhere/RB_DATA/coco_test (tasks.coco.data)" in lines
    assert "missing: /nowhere/RB_WEIGHTS/blip2-opt-2.7b (model.foundation.blip2)" in lines
    assert found["released-refcoco-ours"]["lines"][0] == "missing: /nowhere/RB_RELEASED (models.released.checkpoint)"
    assert rb(["reproduce", "table1", "--rows", "released", "--out", str(tmp_path)]) == 1
    assert "0 PASS, 0 FAIL, 3 NOT RUN" in capsys.readouterr().out


def test_the_papers_values_are_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    from rb.jobs.table import paper_scores

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
    assert all(set(scores) == {"CIDEr", "SPICE"} for scores in expected.values())
    assert all(set(task.tolerance) == {"CIDEr", "SPICE"} for task in plan.tasks.values())
