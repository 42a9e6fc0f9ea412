"""Runs that are ended in start-up, or whose folder goes away under them: nobody is left behind, and the exit code says it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import yaml

from rb.checkpoints import checkpoint
from rb.core.config import FoundationConfig
from rb.core.run_file import to_tree
from rb.core.stopping import PARENT_VARIABLE
from rb.training.run_end import ATTEMPT_VARIABLE, read_end
from rb.training.run_folder import RunFolder
from tests.support import small_data, tiny
from tests.support.processes import Started, finish, free_port, start

ENTRY = "rb.train"


@pytest.fixture(scope="module")
def run_file(foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 5,000 steps on seven clouds, saved every 2 steps."""
    folder = tmp_path_factory.mktemp("breaks_off")
    small_data.write_set(folder / "clouds", "point_cloud", 7)
    train = {"global_batch_size": 1, "micro_batch_size": 1, "max_steps": 5000, "checkpoint_every": 2, "num_threads": 1}
    tree = {
        "name": "run",
        "output_dir": str(folder / "runs"),
        "model": to_tree(tiny.model_config(foundation)) | {"train_modalities": ["point_cloud"]},
        "data": {"train": {"point_cloud": [{"manifest": str(folder / "clouds")}]}, "num_workers": 0},
        "train": train | {"ds_config": "ds_configs/zero2_cpu.json"},
        "tracking": {"mlflow": False},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    return folder / "run.yaml"


def check_waiting(started: Started, since: float) -> None:
    """Fail once a process has ended, or two minutes have passed; else wait a moment."""
    assert started.poll() is None, started.output()
    assert time.monotonic() < since + 120, started.output()
    time.sleep(0.02)


def half_a_run(run_file: Path, **variables: str) -> Started:
    """Rank 0 of two, waiting in start-up for a rank that never comes."""
    port = str(free_port())
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = start(ENTRY, "--run", run_file, **place, **variables)
    since = time.monotonic()
    while not any(c.laddr.port == int(port) for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN):
        check_waiting(started, since)
    return started


@pytest.mark.dist
def test_a_rank_in_start_up_leaves_when_it_is_asked_or_its_launcher_dies(run_file: Path) -> None:
    launcher = subprocess.Popen(["sleep", "600"])
    asked, orphan = half_a_run(run_file), half_a_run(run_file, **{PARENT_VARIABLE: str(launcher.pid)})
    asked.send(signal.SIGTERM)
    launcher.kill()  # not waited for: one that has ended and that nobody waits for is dead too
    assert "stopped by SIGTERM; there is nothing to save yet" in finish(asked, code=75)
    assert "stopped by the end of its launcher; there is nothing to save yet" in finish(orphan, code=75)
    launcher.wait()
    # One that was started when its launcher was dead already.
    assert "stopped by the end of its launcher" in finish(
        start(ENTRY, "--run", run_file, **{PARENT_VARIABLE: str(launcher.pid)}), code=75
    )


@pytest.mark.dist
def test_a_run_whose_folder_is_removed_does_not_end_well(run_file: Path) -> None:
    # Not the folder of the test before, which may have come as far as a checkpoint.
    run_dir = run_file.parent / "runs" / "removed"
    started = start(ENTRY, "--run", run_file, "name=removed", **{ATTEMPT_VARIABLE: "one"})
    since = time.monotonic()
    while not (run_dir / "checkpoints" / "latest").is_file():
        check_waiting(started, since)
    run_dir.rename(run_dir.with_name("moved"))
    output = finish(started, code=2)
    assert f"{run_dir}: the run folder was removed, moved or replaced while the run wrote to it" in output
    assert not run_dir.exists(), "nothing is made in its place"
    assert read_end(run_dir.with_name("moved")) is None

    # The remedy: put it back, continue.
    run_dir.with_name("moved").rename(run_dir)
    started = start(ENTRY, "--resume", run_dir, "train.log_every=1", **{ATTEMPT_VARIABLE: "two"})
    while (run_dir / "log.txt").read_text().count("step 10/5000") < 1:
        check_waiting(started, since)
    started.send(signal.SIGTERM)
    finish(started, code=75)
    marker = read_end(run_dir)
    assert marker is not None
    assert (marker.attempt, marker.code, marker.total_steps) == ("two", 75, 5000)
    assert marker.step == checkpoint.require(run_dir).step


def test_a_folder_that_another_run_made_again_is_not_this_runs(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.claim(new=True)
    folder.check_there()
    folder.end(0, 3, 3)
    assert read_end(folder.path) is not None
    shutil.rmtree(folder.path)
    folder.path.mkdir()
    (folder.path / "training.lock").write_text("process 1 on another-host\n")
    with pytest.raises(ValueError, match="removed, moved or replaced"):
        folder.end(0, 3, 3)
    assert read_end(folder.path) is None


def test_what_a_killed_write_left_in_a_run_folder_is_removed_by_the_next_attempt(tmp_path: Path) -> None:
    names = [".end.json.12-0a1b2c3d.tmp", ".config.yaml.7-00000000.tmp", ".end.json.mine.tmp", ".notes.12-0a1b2c3d.tmp"]
    for name in names:
        (tmp_path / name).write_text("half")
    RunFolder(tmp_path).claim(new=True)
    assert sorted(path.name for path in tmp_path.glob(".*.tmp")) == sorted(
        names[2:]
    )  # not ours, or not under this lock
