"""What `rb launch` advises is done, and helps."""

from __future__ import annotations

import argparse
import shutil
import socket
from pathlib import Path

import pytest
import yaml

from rb.core.locks import FileLock
from rb.core.ranks_here import VISIBLE
from rb.core.run_layout import RUN_CONFIG
from rb.launching import commands
from rb.launching.controller import claimed
from rb.launching.hub import Hub
from rb.launching.job_file import FOLDER
from tests.support.remedies import Said, covers, helps, remedy


def asked(*words: object) -> argparse.Namespace:
    """The options of `rb launch` with these words."""
    parser = argparse.ArgumentParser()
    commands.add_launch(parser)
    return parser.parse_args([str(word) for word in words])


@pytest.mark.parametrize("way", ["install", "ssh"])
@pytest.mark.parametrize("says", covers(["--launcher pdsh: pdsh is not installed; install it, or use --launcher ssh"]))
def test_no_pdsh(tmp_path: Path, monkeypatch, says: str, way: str) -> None:
    """A `pdsh` on PATH is all that is asked for."""
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ["--hostfile", "hosts", "--run", "run.yaml", "--launcher", "pdsh"]

    def follow(said: Said) -> None:
        if way == "install":
            (tmp_path / "pdsh").write_text("#!/bin/sh\n")
            (tmp_path / "pdsh").chmod(0o755)
        else:
            words[-2:] = said.found(r"or use (.+)$").split()

    helps(says, lambda: commands.launcher_of(asked(*words)), follow)


@remedy("is not used on several hosts; unset it")
def test_chosen_gpus_on_several_hosts(monkeypatch):
    monkeypatch.setenv(VISIBLE, "2,3")
    call = lambda: commands.launcher_of(asked("--hostfile", "hosts", "--run", "run.yaml"))  # noqa: E731
    return call, lambda said: monkeypatch.delenv(said.found(r"^(\w+)="))


@remedy("--torchrun: needs --nodes N, --node-rank K and --master-addr HOST on every node")
def test_torchrun_without_its_meeting():
    words: list[object] = ["--torchrun", "--run", "run.yaml"]

    def follow(said: Said) -> None:
        for option, value in (("--nodes", 2), ("--node-rank", 0), ("--master-addr", "node1")):
            words.extend([said.found(rf"({option})"), value])

    return lambda: commands.launcher_of(asked(*words)), follow


@remedy(
    "holds a run with other settings ({}); go on with it by --resume {}, or start another one under a new name (name=...)"
)
def test_another_run_in_its_folder(finished: Path, tmp_path: Path):
    shutil.copytree(finished / "run", tmp_path / "run")
    tree = yaml.safe_load((tmp_path / "run" / RUN_CONFIG).read_text()) | {"name": "run", "output_dir": str(tmp_path)}
    tree["data"] = {"train": {"image_region": [{"manifest": str(finished)}]}}  # any folder that is there
    (tmp_path / "run" / RUN_CONFIG).write_text(yaml.safe_dump(tree))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree | {"seed": 99}))
    words = ["--hostfile", "hosts", "--run", tmp_path / "run.yaml"]
    return lambda: commands.wanted(asked(*words)), lambda said: words.__setitem__(
        slice(-2, None), ["--resume", said.found(r"--resume (\S+),")]
    )


@remedy("another rb launch is in this run folder ({}); wait for it, or stop it")
def test_two_launches_of_one_run(tmp_path: Path):
    other = FileLock(tmp_path / FOLDER / "launch.lock")
    assert other.acquire()
    return lambda: claimed(tmp_path).__enter__(), lambda _: other.release()


@remedy("the controller cannot listen there ({}); give another one with --control-port, or leave it out for a free one")
def test_a_taken_control_port():
    taken = socket.create_server(("127.0.0.1", 0))
    ports = [taken.getsockname()[1]]

    def listen() -> None:
        assert taken.fileno() >= 0
        Hub("t", ("127.0.0.1",), ports[0]).close()

    return listen, lambda _: ports.__setitem__(0, 0)
