"""`rb reproduce` on the toy foundation: what is right passes; a wrong prompt, image size, split and normalisation each fail with the ids they changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from rb.cli import main as rb
from rb.core.install import project_file
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
