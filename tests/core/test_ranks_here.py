"""What ranks on this host are given: GPUs, by whatever names the user has for them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

from rb.core import ranks_here

ROOT = Path(__file__).parents[2]
UUID, MIG = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "MIG-c7384736-a75d-5afc-978f-d2f1294409fd"


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A host of eight GPUs of which CUDA shows as many as CUDA_VISIBLE_DEVICES lists, but none of the number 9 or behind it."""

    def count() -> int:
        listed = [name.strip() for name in os.environ.get(ranks_here.VISIBLE, "0,1,2,3,4,5,6,7").split(",")]
        unknown = [i for i, name in enumerate(listed) if name in ("9", "-1", "")]
        return min([len(listed), *unknown])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: count() > 0)
    monkeypatch.setattr(torch.cuda, "device_count", count)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.delenv(ranks_here.VISIBLE, raising=False)
    return monkeypatch


def test_devices_are_the_users_whatever_they_are_called(
    gpus: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def devices(listed: str | None, ranks: int | None = None) -> list[str]:
        gpus.setenv(ranks_here.VISIBLE, listed) if listed is not None else gpus.delenv(ranks_here.VISIBLE)
        return ranks_here.devices_of_ranks(ranks)

    assert devices("2,3") == ["2", "3"]
    assert devices("7,2", ranks=1) == ["7"]
    assert devices(f"{UUID},GPU-1b3c") == [UUID, "GPU-1b3c"]
    assert devices(MIG) == [MIG]
    assert devices(None) == ["0", "1", "2", "3", "4", "5", "6", "7"]
    assert devices("5,-1,2") == ["5"]
    assert capsys.readouterr().err == ""
    # Hidden GPUs stay hidden: ranks on the CPU must not be given 0 and 1.
    assert devices("", ranks=2) == devices("-1", ranks=2) == ["-1", "-1"]
    gpus.setenv("DS_ACCELERATOR", "cpu")
    assert devices("2,3") == ["-1"]
    gpus.delenv("DS_ACCELERATOR")
    assert capsys.readouterr().err == ""

    assert devices("4,9,5") == ["4"]
    assert "CUDA_VISIBLE_DEVICES=4,9,5: CUDA can use only 4" in capsys.readouterr().err
    assert devices("9") == ["-1"]
    assert "none of them; this runs on the CPU" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"--ranks 3: this host has 2 GPUs for it \(CUDA_VISIBLE_DEVICES=2,3\)"):
        devices("2,3", ranks=3)


def test_the_scripts_pass_the_users_gpus_on(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$CUDA_VISIBLE_DEVICES: $@"\n')
    python.chmod(0o755)
    environment = os.environ | {ranks_here.VISIBLE: f"3,{UUID}", "PYTHON": str(python), "RANKS": "2"}

    def script(*command: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, check=False)

    done = script(ROOT / "launch" / "one_host.sh", "run.yaml", tmp_path / "run", "seed=1")
    assert done.stdout == f"3,{UUID}: -m rb.cli train --ranks 2 --run run.yaml seed=1\n"
    done = script(ROOT / "launch" / "hosts.sh", "hosts", "run.yaml", "--restart", "3", "seed=1")
    assert done.stdout == f"3,{UUID}: -m rb.cli launch --hostfile hosts --run run.yaml --restart 3 seed=1\n"
