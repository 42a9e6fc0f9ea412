"""Runs whose process is gone without having said how it ended: closed by their supervisor, or by the next command."""

from __future__ import annotations

import shutil
import signal
import socket
import time
from pathlib import Path

import pytest

from rb.tracking import Tracker
from rb.tracking.closing import close_ended_run, last_status
from rb.tracking.identity import run_identity, save_identity
from tests.support.mlflow_runs import run_of
from tests.support.processes import Started, start_function


def track_and_die(run_dir: Path) -> None:
    tracker = Tracker(run_dir, interval_s=0.05)
    tracker.metrics(1, {"a": 1.0})
    tracker.mlflow_run_id()
    time.sleep(60)


def wait_until_known(run_dir: Path, process: Started) -> None:
    """Until MLflow has the run."""
    end = time.monotonic() + 60
    while not ((run_dir / "mlflow.json").exists() and "run_id" in run_identity(run_dir)):
        assert time.monotonic() < end, process.output()
        time.sleep(0.05)


def test_the_next_run_closes_those_whose_process_died(runs: Path) -> None:
    process = start_function(track_and_die, runs / "killed")
    end = time.monotonic() + 60
    wait_until_known(runs / "killed", process)
    with Tracker(runs / "alive", mlflow=False):
        (runs / "never copied").mkdir()
        shutil.copy(runs / "alive" / "journal.jsonl", runs / "never copied")
        process.send(signal.SIGKILL)
        process.wait()
        with Tracker(runs / "next", interval_s=0.05) as tracker:
            tracker.mlflow_run_id()
            while run_of(runs / "killed").info.status == "RUNNING" or last_status(runs / "never copied") == "RUNNING":
                assert time.monotonic() < end
                time.sleep(0.05)
        assert last_status(runs / "alive") == "RUNNING"
    killed = run_of(runs / "killed")
    assert killed.info.status == "KILLED"
    assert killed.info.start_time <= killed.info.end_time <= run_of(runs / "next").info.start_time
    assert last_status(runs / "never copied") == "KILLED"
    assert not (runs / "never copied" / "mlflow.json").exists()


def test_a_supervisor_closes_a_run_whose_ranks_have_ended(runs: Path) -> None:
    assert close_ended_run(runs / "run", "FAILED")  # it ended before it had a folder
    assert not (runs / "run").exists()
    process = start_function(track_and_die, runs / "run")
    wait_until_known(runs / "run", process)
    process.send(signal.SIGKILL)
    process.wait()
    before = time.time()
    assert close_ended_run(runs / "run", "FAILED", limit_s=100)
    assert last_status(runs / "run") == "FAILED"
    closed = run_of(runs / "run")
    assert (closed.info.status, closed.data.metrics) == ("FAILED", {"a": 1.0})
    assert before * 1000 - 1 <= closed.info.end_time <= time.time() * 1000
    with Tracker(runs / "run", interval_s=0.05) as tracker:  # restarted
        while run_of(runs / "run").info.status != "RUNNING":
            assert time.time() < before + 100
            time.sleep(0.02)
        tracker.metrics(2, {"a": 2.0})
    assert close_ended_run(runs / "run", "FAILED")  # it has said itself how it ended
    assert (last_status(runs / "run"), run_of(runs / "run").info.status) == ("FINISHED", "FINISHED")


def test_a_supervisor_does_not_wait_for_a_server_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    Tracker(run, mlflow=False)._lock.release()  # as if its process had died
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never answers
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        save_identity(run, run_identity(run) | {"tracking_uri": uri, "run_id": "x"})
        began = time.monotonic()
        assert not close_ended_run(run, "KILLED", limit_s=0.5)
        assert time.monotonic() - began < 10  # 0.5 s and a machine that may be busy; MLflow itself would wait 21 s
    assert last_status(run) == "KILLED"
    assert f"(no answer in 0.5 s); nothing is lost, send it with: rb track sync {run}" in caplog.text
