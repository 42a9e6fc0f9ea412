"""Bad input by the commands that a user types: what is wrong with scenes is listed by reason, a foundation of another kind is one clear line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from eval import predict as predict_command
from rb.cli import main as rb
from rb.core.config import FoundationConfig
from rb.core.run_file import to_tree
from rb.data.formats import read_manifest, read_rejected
from tests.support import small_data, tiny
from tests.support.processes import finish, start

GOOD_BOX = [1.0, 2.0, 1.0, 1.0, 0.5, 2.0, 5, 3]  # centre, sizes, class, object id
FLAT_BOX = [2.0, 2.0, 1.0, 1.0, 1.0, 0.0, 5, 4]


def write_scene(raw: Path, scene: str, boxes: list[list[float]], aligned: bool = True) -> None:
    rng, n = np.random.default_rng(0), 9000
    vertices = np.concatenate([rng.uniform(0, 3, (n, 3)), rng.uniform(0, 255, (n, 3)), np.zeros((n, 3))], axis=1)
    for kind, rows in (("vert", vertices), ("bbox", np.array(boxes))):
        np.save(raw / "scannet_data" / f"{scene}_{'aligned_' if aligned else ''}{kind}.npy", rows)


def test_scenes_boxes_and_descriptions_that_cannot_be_used_are_listed_by_reason(tmp_path: Path, capsys) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    (raw / "scannet_data").mkdir(parents=True)
    write_scene(raw, "scene0000_00", [GOOD_BOX, FLAT_BOX])
    write_scene(raw, "scene0001_00", [GOOD_BOX], aligned=False)
    described = [("scene0000_00", "3"), ("scene0000_00", "4"), ("scene0000_00", "34"), ("scene0001_00", "3")]
    rows = [
        {"scene_id": scene, "object_id": item, "ann_id": "0", "description": "a chair."} for scene, item in described
    ]
    (raw / "ScanRefer_filtered_val.json").write_text(json.dumps(rows))
    assert rb(["prepare", "scanrefer", "--raw", str(raw), "--out", str(out), "--split", "val", "--json"]) == 0
    manifest = read_manifest(out / "manifest.json")
    assert manifest.counts["objects"] == 1
    reasons = {"box_empty": "no volume", "unknown_object": "no such object", "scene_not_aligned": "align"}
    assert manifest.rejected == dict.fromkeys(reasons, 1)
    listed = {row.reason: row for row in read_rejected(out / "rejected.jsonl")}
    printed = json.loads(capsys.readouterr().out)
    assert (printed["read"], printed["used"]) == (4, 1)
    for reason, words in reasons.items():
        assert words in listed[reason].detail, listed[reason]
        assert "scene000" in listed[reason].source + listed[reason].detail
        assert printed["rejected"][reason] == 1


@pytest.fixture(scope="module")
def opt_run(foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FoundationConfig]:
    """A run file for OPT, and a T5 foundation."""
    folder = tmp_path_factory.mktemp("wrong")
    small_data.write_set(folder / "data", "image_region", 4)
    tree = {
        "name": "wrong",
        "output_dir": str(folder / "runs"),
        "model": to_tree(tiny.model_config(foundation, train_modalities=("image_region",), llm="decoder")),
        "data": {"train": {"image_region": [{"manifest": str(folder / "data")}]}, "num_workers": 0},
        "train": {
            "global_batch_size": 2,
            "micro_batch_size": 2,
            "max_steps": 1,
            "ds_config": "ds_configs/zero2_cpu.json",
        },
        "tracking": {"mlflow": False},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    return folder / "run.yaml", tiny.write_foundation(folder / "t5", llm="t5")


@pytest.mark.dist
def test_a_t5_checkpoint_given_to_an_opt_run(opt_run: tuple[Path, FoundationConfig], tmp_path: Path, capsys) -> None:
    run_file, t5 = opt_run
    output = finish(start("rb.train", "--run", run_file, f"model.foundation.blip2={t5.blip2}"), code=2)
    (line,) = [line for line in output.splitlines() if "error" in line]
    assert f"{t5.blip2} holds a t5 LLM" in line
    assert "model.llm is 'decoder'" in line
    assert "name a folder of that kind, or change model.llm" in line
    assert "Traceback" not in output
    # Trained on OPT, then asked to caption with T5 in its place: refused too, also where model.llm would allow any kind.
    finish(start("rb.train", "--run", run_file, "name=right"))
    data = ["--data", str(run_file.parent / "data"), "--modality", "image_region", "--out", str(tmp_path / "p.jsonl")]
    run_dir = run_file.parent / "runs" / "right"
    swapped = [f"model.foundation.blip2={t5.blip2}", "model.llm=auto"]
    capsys.readouterr()
    assert predict_command.main(["--checkpoint", str(run_dir), *data, *swapped]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rb predict: error: ")
    assert "step_" in error
    assert not (tmp_path / "p.jsonl").exists()
