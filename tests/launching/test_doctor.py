"""`rb doctor` on this host, and the sum over ranks that it shares with a launch: real processes, forked."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rb.cli import main
from rb.core.config import FoundationConfig
from rb.core.run_file import to_tree
from rb.launching import doctor
from tests.support import processes, small_data, tiny
from tests.support.remedies import Said, covers, helps

PROBE = "rb.launching.probe"


class Child:
    """Stands for the ``Popen`` of a rank: a fork of the test server, which has torch already."""

    def __init__(self, command: list[str], env: dict[str, str], stdout: Any, stderr: Any) -> None:
        assert command[:3] == [sys.executable, "-m", PROBE]
        self.returncode: int | None = None
        self._streams = (stdout.name, stderr.name)
        self._started = processes.start(PROBE, *command[3:], **env)

    def poll(self) -> int | None:
        return self._started.poll()

    def kill(self) -> None:
        if self._started.poll() is None:
            self._started.send(signal.SIGKILL)

    def wait(self) -> int:
        self.returncode = self._started.wait()
        for name in self._streams:
            Path(name).write_text(self._started.output())
        return self.returncode


@pytest.fixture(autouse=True)
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "Popen", Child)


@pytest.fixture(scope="module")
def run_file(foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    small_data.write_set(folder / "regions", "image_region", 8)
    tree = {
        "name": "a",
        "output_dir": str(folder / "runs"),
        "model": to_tree(tiny.model_config(foundation, train_modalities=("image_region",))),
        "data": {"train": {"image_region": [{"manifest": "regions"}]}},
        "train": {"global_batch_size": 4, "micro_batch_size": 1, "ds_config": "ds_configs/zero2_cpu.json"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    return folder / "run.yaml"


def test_a_host_and_a_run_that_are_right(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--run", str(run_file), "--ranks", "2", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    states = {row["check"]: row["state"] for row in said["findings"]}
    assert set(states.values()) == {"ok"}
    assert {"run", "data", "foundation", "batch", "allreduce"} <= set(states)
    values = {row["check"]: row["value"] for row in said["findings"]}
    assert values["allreduce"].startswith("2 rank(s), gloo, 1 MiB in ")
    assert said["facts"]["disk"]["needed"] > 0, "the dry run told the size of a checkpoint"
    assert not (run_file.parent / "runs").exists()


def test_without_a_run_and_what_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth77")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "FAILED: " in out
    assert ": environment: GLOO_SOCKET_IFNAME=eth77 names no interface" in out
    assert ": allreduce: rank 0 on " in out
    assert "foundation" not in out


def test_a_rank_that_does_not_come_is_not_waited_for_without_end() -> None:
    environment = {
        "WORLD_SIZE": "2",
        "RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(processes.free_port()),
    }
    alone = processes.start(PROBE, "--timeout", "1", **environment)
    assert alone.wait() == 1
    assert alone.output().splitlines()[-1].startswith(f"rank 0 on {os.uname().nodename}: ")
    assert len(alone.output().splitlines()) == 1, "no pages of stack frames"
    assert processes.start(PROBE, WORLD_SIZE="2", RANK="2", MASTER_ADDR="x", MASTER_PORT="1").wait() == 2


@pytest.mark.parametrize("piece", covers(["changes a run; name it with --run"]))
def test_overrides_need_a_run(piece: str, run_file: Path) -> None:
    words = ["doctor", "seed=3"]

    def follow(said: Said) -> None:
        words.extend(["--run", str(run_file)])

    helps(piece, lambda: main(words), follow)


@pytest.mark.parametrize("piece", covers(["see whether the variables GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name"]))
def test_a_sum_that_fails(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth77")
    helps(piece, lambda: doctor.try_sum(1, False, "n1").line(), lambda said: monkeypatch.delenv("GLOO_SOCKET_IFNAME"))
