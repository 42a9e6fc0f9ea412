"""A real MLflow server that is away, hangs, refuses or talks nonsense: training waits for nothing, each change is said once, no point is lost."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from rb.tracking import Tracker, metric_points
from rb.tracking.commands import sync
from rb.tracking.identity import run_identity
from rb.tracking.mlflow_store import OFFSET_TAG
from rb.tracking.sqlite_store import forget_connections
from tests.support.mlflow_runs import all_points, client_of, run_of
from tests.support.mlflow_server import NONSENSE, Door, mlflow_server
from tests.support.processes import finish, start_function
from tests.support.remedies import remedy


@pytest.fixture(scope="module")
def door(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """In front of a server whose store is whole."""
    store = tmp_path_factory.mktemp("server") / "mlflow.db"
    shutil.copy(made, store)
    with mlflow_server(store) as server, closing(Door(server.port)) as opened:
        yield opened


@pytest.fixture
def served(door: Door, monkeypatch: pytest.MonkeyPatch) -> Door:
    """The open door, which trackers ask and ask again soon."""
    door.mode = "open"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", door.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    for name in ("FIRST_RETRY_S", "LONGEST_RETRY_S"):
        monkeypatch.setattr(f"rb.tracking.mlflow_copy.{name}", 0.05)
    return door


def server_client(door: Door):
    from mlflow.tracking import MlflowClient

    return MlflowClient(door.uri)


def wait_for(happened: Callable[[], object]) -> None:
    end = time.monotonic() + 100
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def points_of(run_dir: Path) -> dict[tuple[str, int], int]:
    """Every point of the journal, once."""
    return {(n, p.step): 1 for n, points in metric_points(run_dir / "journal.jsonl").items() for p in points}


class Log:
    """Warnings of the tracking so far, counted."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def count(self, piece: str) -> int:
        return sum(piece in record.getMessage() for record in self._caplog.records if record.levelno >= logging.WARNING)

    def lines(self) -> list[str]:
        return [record.getMessage() for record in self._caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    return Log(caplog)


def test_whatever_stands_in_the_place_of_the_server_each_change_is_said_once(
    served: Door, tmp_path: Path, log: Log
) -> None:
    step, slowest = 0, 0.0
    with Tracker(tmp_path / "run", interval_s=0.02) as tracker:
        wait_for(lambda: tracker.mlflow_run_id())

        def steps_until(happened: Callable[[], object]) -> None:
            nonlocal step, slowest
            end = time.monotonic() + 100
            while not happened():
                assert time.monotonic() < end, log.lines()
                began = time.monotonic()
                tracker.metrics(step := step + 1, {"train/lr": 1.0, "train/epoch": 2.0})
                slowest = max(slowest, time.monotonic() - began)
                time.sleep(0.02)

        for number, served.mode in enumerate(["hang", *NONSENSE]):
            steps_until(lambda: len(log.lines()) > 2 * number)  # noqa: B023 (called in the same turn)
            for _ in range(5):
                steps_until(lambda: True)
                time.sleep(0.05)
            said = log.lines()[2 * number :]
            assert len(said) == 1, f"{served.mode}: {said}"
            refuses = served.mode in ("401", "403")
            assert (f"refuses this user (answer {served.mode})" if refuses else "cannot be reached") in said[0]
            served.mode = "open"
            steps_until(lambda: len(log.lines()) == 2 * number + 2)  # noqa: B023
            assert log.lines()[-1].endswith("is back and has everything")
    assert slowest < 1.0  # a call that waits for a server takes 2 s
    client = server_client(served)
    assert all_points(client, run_identity(tmp_path / "run")["run_id"]) == points_of(tmp_path / "run")


@pytest.mark.parametrize("what", ["run", "experiment"])
def test_what_is_deleted_in_the_middle_goes_on_once_it_is_restored(
    served: Door, tmp_path: Path, log: Log, what: str
) -> None:
    client = server_client(served)
    with Tracker(tmp_path / "run", experiment=f"deleted {what}", interval_s=0.02) as tracker:
        tracker.metrics(1, {f"train/image_region/loss_{i}": 1.0 for i in range(4)})
        run_id = tracker.mlflow_run_id()
        wait_for(lambda: all_points(client, run_id))
        experiment = client.get_run(run_id).info.experiment_id
        client.delete_run(run_id) if what == "run" else client.delete_experiment(experiment)
        tracker.metrics(2, {f"train/image_region/loss_{i}": 2.0 for i in range(4)})
        wait_for(log.lines)
        time.sleep(0.3)
        (said,) = log.lines()
        named = run_id if what == "run" else "experiment 'deleted experiment'"
        assert f"{named} is deleted in {served.uri}; restore it there" in said
        client.restore_run(run_id) if what == "run" else client.restore_experiment(experiment)
        wait_for(lambda: log.count("is back"))
    assert all_points(client, run_id) == points_of(tmp_path / "run")
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_run_that_is_stopped_waits_a_short_time_for_a_server_that_hangs(
    served: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "100")
    monkeypatch.setattr("rb.tracking.mlflow_copy.HURRIED_S", 0.3)
    monkeypatch.setattr("rb.tracking.tracker.HURRIED_S", 0.3)
    served.mode = "hang"
    began = time.monotonic()
    Tracker(tmp_path / "stopped").finish("KILLED", timeout_s=100)
    Tracker(tmp_path / "asked at the end").finish("FINISHED", timeout_s=100, hurry=lambda: True)
    Tracker(tmp_path / "finished").finish("FINISHED", timeout_s=0.3)
    assert time.monotonic() - began < 60
    assert log.count("rb track sync") == 3


@remedy("or MLFLOW_TRACKING_TOKEN, be those of a user who may edit the experiment, then: rb track sync {}")
def test_a_server_that_wants_a_name(served: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Tracker(tmp_path / "run", mlflow=False).finish()
    served.mode = "guarded"

    def follow(said):
        monkeypatch.setenv(said.found(r"let (\w+)"), "someone")
        monkeypatch.setenv(said.found(r"and (\w+),"), "secret")

    return lambda: sync(tmp_path / "run"), follow


# A store that was replaced by an older copy of itself


def track(run_dir: Path, first: int, last: int) -> None:
    with Tracker(run_dir) as tracker:
        for step in range(first, last):
            tracker.metrics(step, {"train/lr": 1.0 / step, "train/epoch": 2.0})


def send(run_dir: Path) -> None:
    sync(run_dir)


def test_sync_sends_what_an_older_copy_of_the_store_lacks(runs: Path) -> None:
    run, store = runs / "run", runs / "mlflow.db"
    older = [runs / "without the run.db", runs / "with half of it.db"]
    shutil.copy(store, older[0])
    finish(start_function(track, run, 1, 50))  # other processes: MLflow keeps a store that it has opened
    shutil.copy(store, older[1])
    finish(start_function(track, run, 50, 100))
    for copy in older:
        store.unlink()
        shutil.copy(copy, store)
        finish(start_function(send, run))
        forget_connections(store)
        assert all_points(client_of(runs), run_identity(run)["run_id"]) == points_of(run)
        assert run_of(run).info.status == "FINISHED"


def test_a_run_that_goes_on_sends_what_its_store_lost_meanwhile(runs: Path, log: Log) -> None:
    client = client_of(runs)
    with Tracker(runs / "run", interval_s=0.02) as tracker:
        run_id, offsets = tracker.mlflow_run_id(), []
        for step in range(1, 4):
            tracker.metrics(step, {"train/lr": 1.0})
            offsets.append(str((runs / "run" / "journal.jsonl").stat().st_size))
            # The offset is sent behind the points: one that came after the change below would say that nothing is missing.
            wait_for(lambda: client.get_run(run_id).data.tags.get(OFFSET_TAG) == offsets[-1])
        with closing(sqlite3.connect(runs / "mlflow.db", timeout=60)) as store:  # what an older copy of it holds
            store.execute("DELETE FROM metrics WHERE step > 1")
            store.execute("UPDATE tags SET value = ? WHERE key = ?", (offsets[0], OFFSET_TAG))
            store.commit()
        tracker.metrics(4, {"train/lr": 1.0})
    assert all_points(client, run_id) == points_of(runs / "run")
    assert log.lines() == []
