"""Folders that commit 18c6373 wrote open unchanged, moved to another path and from another working directory.

`tests/data_18c6373/folders.tar.xz` holds `foundation/` (tiny, random), `shards/`, `runs/old` and `export/` (with relative paths, as they were
given), made by that commit's own commands. `later/` is the state that it had one step later.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import eval.predict
from rb.api import RegionBLIP
from rb.checkpoints import checkpoint
from rb.checkpoints.export_folder import read_export
from rb.cli import main as cli
from rb.data.predictions import read_predictions
from rb.data.shards import verify_shards
from rb.pages.report import build_report

ROOT = Path(__file__).parents[1]
MODALITIES = ("image_region", "point_cloud")


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders somewhere, and a working directory elsewhere."""
    folder = tmp_path / "moved"
    with tarfile.open(ROOT / "tests/data_18c6373/folders.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


@pytest.mark.parametrize("modality", MODALITIES)
def test_predictions_are_the_same(modality: str, old: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = ["--checkpoint", str(old / "runs/old"), "--data", str(old / "shards" / modality), "--modality", modality]
    assert eval.predict.main([*asked, "--out", str(tmp_path / "p.jsonl")]) == 0
    assert (
        read_predictions(tmp_path / "p.jsonl")[0] == read_predictions(old / f"runs/old/predictions/{modality}.jsonl")[0]
    )
    assert "of an older version and weaker" in caplog.text


def test_a_resume_makes_the_step_that_the_old_code_made(old: Path) -> None:
    """Bit-equal on the processor that made the folders; others round otherwise, by 7e-6 of what the step changes (plain vector kernels).

    Where the step changes a number by few units in its last place, that unit is what it may differ by.
    """
    start = load_file(checkpoint.require(old / "runs/old").path / "state.safetensors")
    command = [sys.executable, "-m", "rb.train", "--resume", str(old / "runs/old")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = checkpoint.require(old / "runs/old")
    assert found.step == 3
    made, before = load_file(found.path / "state.safetensors"), load_file(old / "later" / "state.safetensors")
    assert made.keys() == before.keys()
    for name, value in before.items():
        last_place = torch.from_numpy(np.spacing(value.abs().numpy())) if value.is_floating_point() else 0
        change = (value - start[name]).abs().max()
        assert ((made[name] - value).abs() <= last_place + 1e-4 * change).all(), name
    assert found.meta["identities"]["foundation"]["blip2"].startswith("sha256:")


def test_a_dry_run_of_a_resume_accepts_what_the_resume_accepts(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["train", "--dry-run", "--json", "--ranks", "1", "--resume", str(old / "runs/old")]) == 0
    assert json.loads(capsys.readouterr().out)["resume_from_step"] == 2


def test_a_resume_keeps_the_pool_of_the_old_ranks(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--dry-run", "--json", "--ranks", "2", "--resume", str(old / "runs/old")]
    assert cli([*command, "train.micro_batch_size=1"]) == 0
    assert json.loads(capsys.readouterr().out)["batch"]["contrastive_batch_size"] == 2
    assert cli([*command, "train.micro_batch_size=1", "train.contrastive_batch_size=1"]) == 2
    assert "train.contrastive_batch_size: 2 -> 1" in capsys.readouterr().err


def test_run_and_export_caption_and_export_again(old: Path, tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3))
    box = [1.0, 1.0, 9.0, 12.0]
    by_run = RegionBLIP.from_pretrained(old / "runs/old").caption(image, box, box_format="pixels")
    by_export = RegionBLIP.from_pretrained(old / "export", old / "foundation").caption(image, box, box_format="pixels")
    assert by_run == by_export
    assert cli(["export", str(old / "runs/old"), "--out", str(tmp_path / "again")]) == 0
    again, before = read_export(tmp_path / "again"), read_export(old / "export")
    assert (again.modalities, again.step, again.fingerprints) == (before.modalities, before.step, before.fingerprints)
    assert all(torch.equal(again.tensors[name], value) for name, value in before.tensors.items())


def test_shards_verify_and_the_report_is_written(old: Path) -> None:
    for modality in MODALITIES:
        assert verify_shards(old / "shards" / modality).counts["records"] == 4
    assert "weights" in build_report(old / "runs/old").read_text(encoding="utf-8")
