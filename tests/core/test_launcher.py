"""What the launcher gives to ranks, and what is known once they have ended; the start of ranks by the real launcher of DeepSpeed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from rb.core import launcher
from rb.core.exit_codes import ABORTED, FAILED, FINISHED, STOPPED, WRONG_REQUEST
from rb.core.run_layout import RUN_END
from rb.training.run_end import ATTEMPT_VARIABLE, clear_end, outcome, read_end, write_end

ROOT = Path(__file__).parents[2]
UUID, MIG = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "MIG-c7384736-a75d-5afc-978f-d2f1294409fd"


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A host of eight GPUs of which CUDA shows as many as CUDA_VISIBLE_DEVICES lists, but none of the number 9 or behind it."""

    def count() -> int:
        listed = [name.strip() for name in os.environ.get(launcher.VISIBLE, "0,1,2,3,4,5,6,7").split(",")]
        unknown = [i for i, name in enumerate(listed) if name in ("9", "-1", "")]
        return min([len(listed), *unknown])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: count() > 0)
    monkeypatch.setattr(torch.cuda, "device_count", count)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.delenv(launcher.VISIBLE, raising=False)
    return monkeypatch


@pytest.mark.dist
def test_ranks_get_the_listed_gpus_in_order_and_a_killed_launcher_is_no_end(
    gpus: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gpus.setenv(launcher.VISIBLE, f"3, {UUID},1")
    files = [tmp_path / f"rank{rank}.json" for rank in (0, 1)]

    def kill_the_launcher() -> None:
        end = time.monotonic() + 120
        while not all(file.is_file() for file in files) and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(json.loads(files[0].read_text())["launcher"], signal.SIGKILL)

    killer = threading.Thread(target=kill_the_launcher)
    killer.start()
    code = launcher.launch_ranks("tests.support.rank_probe", [str(tmp_path)], 2, {ATTEMPT_VARIABLE: "first"})
    killer.join()
    given = [json.loads(file.read_text()) for file in files]
    # DeepSpeed's own command would sort "3,1", take a number of GPUs for 0 and 1, and fail at a UUID.
    assert [one[launcher.VISIBLE] for one in given] == [f"3,{UUID}"] * 2
    assert [(one["RANK"], one["WORLD_SIZE"], one["LOCAL_RANK"]) for one in given] == [("0", "2", "0"), ("1", "2", "1")]
    assert not psutil.pid_exists(given[0]["launcher"])

    assert code == 128 + signal.SIGKILL
    assert outcome(tmp_path, "first", code) == STOPPED  # the ranks saw it, and said how they ended
    assert "the run itself ended with code 75 at step 7 of 60" in capfd.readouterr().err
    assert outcome(tmp_path, "second", code) == code  # the marker is of another start
    assert "the run did not finish (its launcher or a rank was ended by signal 9" in capfd.readouterr().err


def test_devices_are_the_users_whatever_they_are_called(
    gpus: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def devices(listed: str | None, ranks: int | None = None) -> list[str]:
        gpus.setenv(launcher.VISIBLE, listed) if listed is not None else gpus.delenv(launcher.VISIBLE)
        return launcher.devices_of_ranks(ranks)

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
    environment = os.environ | {launcher.VISIBLE: f"3,{UUID}", "PYTHON": str(python), "RANKS": "2"}

    def script(*command: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, check=False)

    done = script(ROOT / "launch" / "one_host.sh", "run.yaml", tmp_path / "run", "seed=1")
    assert done.stdout == f"3,{UUID}: -m rb.cli train --ranks 2 --run run.yaml seed=1\n"
    done = script(ROOT / "launch" / "hosts.sh", "hosts", "run.yaml", "--restart", "3", "seed=1")
    assert done.stdout == f"3,{UUID}: -m rb.cli launch --hostfile hosts --run run.yaml --restart 3 seed=1\n"


def test_the_exit_code_is_the_runs_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(tmp_path, "a", FINISHED) == FAILED  # nobody wrote how it ended: it did not
    assert "did not finish (its ranks left without a word); the same command starts again" in capsys.readouterr().err
    (tmp_path / "config.yaml").touch()
    assert outcome(tmp_path, "a", 137) == 137
    assert f"where memory is short); go on with --resume {tmp_path}" in capsys.readouterr().err
    for code in (STOPPED, WRONG_REQUEST, ABORTED):  # the ranks have said why
        assert outcome(tmp_path, "a", code) == code
    assert outcome(tmp_path / "removed", "a", FINISHED) == FAILED
    capsys.readouterr()

    monkeypatch.setenv(ATTEMPT_VARIABLE, "a")
    write_end(tmp_path, FINISHED, 60, 60)
    assert outcome(tmp_path, "a", FINISHED) == FINISHED
    assert capsys.readouterr().err == ""
    assert outcome(tmp_path, "a", 1) == FINISHED  # a rank that fell while it left changes nothing
    for damaged in ('{"format": 1, "attempt": "a"}', "[]", "{", '{"format": 2}'):
        (tmp_path / RUN_END).write_text(damaged)
        assert read_end(tmp_path) is None
    clear_end(tmp_path)
    clear_end(tmp_path)
    assert read_end(tmp_path) is None


def test_codes_of_signals_read_as_in_a_shell() -> None:
    assert [launcher.shell_code(code) for code in (0, 2, 75, -9, 256 - 9, 256 - 15)] == [0, 2, 75, 137, 137, 143]
