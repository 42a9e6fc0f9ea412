"""A fifth modality, depth maps of regions, is one row of the table: adopted, trained, predicted, scored, in table and report.

Nothing but `DEPTH_MAP` is added: the commands are the real ones, the shards are written as anyone's would be.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from transformers import Blip2Config

from eval import predict as predict_command
from eval import report as report_command
from eval import score as score_command
from eval import table as table_command
from rb import train
from rb.cli import main as rb
from rb.core.config import FoundationConfig, ModelConfig
from rb.core.exit_codes import leave
from rb.core.modality import MODALITIES, ModalitySpec
from rb.core.run_file import to_tree
from rb.data.formats import ObjectAnnotation, Record, read_manifest
from rb.data.predictions import read_predictions
from rb.model.weights.build import build_meta
from rb.tracking import metric_points
from tests.support import tiny
from tests.support.processes import finish, start_function

DEPTH_MAP = ModalitySpec("depth_map", "image", 4, "a depth map of", trains_by_default=True)
SIDE, STEPS = 32, 40


def train_with_the_row(run_file: str) -> None:
    """The one row, and the training entry: what the training process runs."""
    MODALITIES[DEPTH_MAP.name] = DEPTH_MAP
    leave(train.main(["--run", run_file]))


@pytest.fixture(autouse=True)
def _row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODALITIES, DEPTH_MAP.name, DEPTH_MAP)


def write_depth_maps(folder: Path, count: int, split: str) -> None:
    """A plain tar of maps of a sloping floor with a near thing on the left or on the right, adopted by `rb data index`."""
    folder.mkdir()
    with tarfile.open(folder / "depth.tar", "w") as tar:
        for i in range(count):
            depth = np.tile(np.linspace(40, 120, SIDE)[:, None], (1, SIDE))
            left = 3 + i % 4 + (16 if i % 2 else 0)
            depth[8:20, left : left + 9] = 250
            buffer = io.BytesIO()
            Image.fromarray(depth.astype(np.uint8), "L").save(buffer, "PNG")
            word = "cube right" if i % 2 else "ball left"
            box = [float(left), 8.0, float(left + 9), 20.0]
            record = Record(f"depth/{i}", "depth", split, SIDE, SIDE, [], [ObjectAnnotation("near", box, [word])])
            for ending, data in (("png", buffer.getvalue()), ("json", record.to_json())):
                member = tarfile.TarInfo(f"{i:04d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    assert rb(["data", "index", str(folder), "--modality", DEPTH_MAP.name]) == 0


@pytest.mark.dist
def test_a_fifth_modality_is_one_row_of_the_table(foundation: FoundationConfig, tmp_path: Path, capsys) -> None:
    write_depth_maps(tmp_path / "train", 8, "train")
    write_depth_maps(tmp_path / "test", 4, "test")
    assert read_manifest(tmp_path / "train" / "manifest.json").modality == "depth_map"
    tree = {
        "name": "depth",
        "output_dir": f"{tmp_path}",
        "model": to_tree(tiny.model_config(foundation, train_modalities=("depth_map",))),
        "data": {"train": {"depth_map": [{"manifest": f"{tmp_path}/train"}]}, "num_workers": 0},
        "optim": {"lr": 1e-2, "warmup_steps": 3, "grad_clip": 1.0},
        "train": {
            "global_batch_size": 8,
            "micro_batch_size": 8,
            "max_steps": STEPS,
            "log_every": 5,
            "ds_config": "ds_configs/zero2_cpu.json",
            "num_threads": 1,
        },
        "tracking": {"mlflow": False},
        "decode": {"num_beams": 2, "max_new_tokens": 4},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    finish(start_function(train_with_the_row, f"{tmp_path}/run.yaml"))
    run_dir = tmp_path / "depth"
    points = metric_points(run_dir / "journal.jsonl")
    for term in ("itc", "itm", "itg", "llm", "reg", "total"):
        assert f"train/depth_map/loss_{term}" in points, sorted(points)
    losses = [point.value for point in points["train/depth_map/loss_llm"]]
    assert losses[-1] < 0.7 * losses[0], losses

    said = {}
    for name, model in (("base", ["--run", f"{tmp_path}/run.yaml"]), ("trained", ["--checkpoint", str(run_dir)])):
        out = run_dir / "predictions" / f"{name}.jsonl"
        data = ["--data", f"{tmp_path}/test", "--modality", "depth_map", "--out", str(out)]
        assert predict_command.main([*model, *data]) == 0, capsys.readouterr().err
        assert score_command.main([str(out), "--no-java", "--no-mlflow"]) == 0
        said[name] = read_predictions(out)[0]
    assert [row.id for row in said["trained"]] == [f"depth/{i}#near" for i in range(4)]
    assert said["base"] != said["trained"]
    scores = {name: json.loads((run_dir / "metrics" / f"{name}.json").read_text())["scores"]["BLEU-1"] for name in said}
    assert scores["trained"] > scores["base"], said

    capsys.readouterr()
    assert table_command.main([str(run_dir)]) == 0
    assert "depth map" in capsys.readouterr().out
    assert report_command.main([str(run_dir)]) == 0
    page = (run_dir / "report.html").read_text()
    assert "depth map · depth test" in page
    assert page.count("data:image/") >= 4  # every example with its picture


def test_every_default_knows_the_new_row(foundation: FoundationConfig) -> None:
    config = ModelConfig()
    assert "depth_map" in config.train_modalities
    assert "depth_map" in config.itm_modalities
    config = tiny.model_config(foundation, train_modalities=("depth_map", "image_region"))
    model = build_meta(config, Blip2Config.from_pretrained(foundation.blip2), None)
    users = model.parameter_modalities()
    own = {
        m: sum(p.numel() for n, p in model.trainable_parameters().items() if users[n] == (m,))
        for m in config.train_modalities
    }
    assert own["depth_map"] == own["image_region"] > 0
