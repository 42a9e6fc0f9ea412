"""The run file that trains on RefCOCO and mined regions together: it starts on a small foundation, with a set that mining made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rb.core.config import FoundationConfig
from rb.data.formats import read_manifest
from tests.support import small_data
from tests.support.mined import input_tars, job
from tests.support.processes import finish, start_ranks

SMALL = (
    "model.max_text_tokens=12",
    "data.num_workers=0",
    "train.global_batch_size=4",
    "model.num_points=16",
    "model.num_scene_points=16",
    "train.max_steps=6",
    "train.log_every=1",
    "train.ds_config=ds_configs/zero2_cpu.json",
    "train.num_threads=1",
    "validation.every=0",
    "tracking.mlflow=false",
)


@pytest.mark.timeout(600)
def test_the_run_file_of_mined_regions_starts(foundation: FoundationConfig, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name, modality in (
        ("refcoco", "image_region"),
        ("objaverse", "point_cloud"),
        ("scanrefer", "point_cloud_region"),
    ):
        small_data.write_set(data / f"{name}_train", modality, 4)
    job(data / "mined", input_tars(tmp_path / "in", 2, 3))
    parts = [
        f"model.foundation.{part}={getattr(foundation, part)}" for part in ("blip2", "text_branch", "point_encoder")
    ]
    settings = [*SMALL, *parts, f"output_dir={tmp_path}"]
    finish(*start_ranks(1, "rb.train", "--run", "mined_opt_2.7b", *settings, RB_DATA=str(data), RB_WEIGHTS="none"))
    folder = tmp_path / "mined_opt_2.7b"
    journal = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    assert journal[-1]["status"] == "FINISHED"
    assert any("train/image_region/loss_llm" in row.get("values", {}) for row in journal)
    assert read_manifest(data / "mined" / "shards").exif == "upright"
