"""MLflow away under a run: stopped, killed, replaced by an older copy, full, refusing; at the start, in the middle, at the end. No step waits for it, and afterwards it has every point of the journal once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles

import pytest
import yaml

from rb.core.config import FoundationConfig
from rb.core.exit_codes import STOPPED
from rb.core.run_file import to_tree
from rb.tracking import Tracker, metric_points
from rb.tracking.closing import close_ended_run
from rb.tracking.commands import sync
from rb.tracking.errors import TrackingError
from rb.tracking.identity import run_identity
from rb.tracking.journal import read_rows
from tests.support import small_data, tiny
from tests.support.disks import small_disk
from tests.support.mlflow_runs import client_of
from tests.support.mlflow_server import Door, MlflowServer, mlflow_server
from tests.support.processes import Started, finish, start_function
from tests.support.trials import Figures, Trials

ROOT = Path(__file__).resolve().parents[2]
LIVE_S, AWAY_S = 15, 60  # the server is killed and full for half of that
SLACK = 1.3  # a step without the server may take so much longer than one with it
LONGEST_S = 5.0  # and no step so long: one call to a server that hangs takes 10 s


def client_at(uri: str):
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri)


def compare(run_dir: Path, client, figures: Figures) -> None:
    """Every point of the journal is in MLflow once, with its value, and no other one is."""
    run_id = run_identity(run_dir)["run_id"]
    points = metric_points(run_dir / "journal.jsonl")
    lost = twice = 0
    for name, expected in points.items():
        found = sorted((point.step, point.value) for point in client.get_metric_history(run_id, name))
        twice += len(found) - len({step for step, _ in found})
        lost += len({(point.step, point.value) for point in expected} - set(found))
    figures |= {"points lost": lost, "points twice": twice}
    print(f"{sum(map(len, points.values()))} points, {lost} lost, {twice} twice")
    assert (lost, twice) == (0, 0)
    assert set(client.get_run(run_id).data.metrics) == set(points)


# A whole training


class Training:
    """``rb train`` on two regions a step, without an end; every step is a row of the journal."""

    def __init__(self, foundation: FoundationConfig, folder: Path, uri: str) -> None:
        small_data.write_set(folder / "regions", "image_region", 8)
        tree = {
            "name": "run",
            "output_dir": str(folder / "runs"),
            "model": to_tree(tiny.model_config(foundation)) | {"train_modalities": ["image_region"]},
            "data": {"train": {"image_region": [{"manifest": str(folder / "regions")}]}, "num_workers": 0},
            "train": {
                "global_batch_size": 2,
                "micro_batch_size": 2,
                "max_steps": 1_000_000,
                "log_every": 1,
                "checkpoint_every": 1_000_000,
                "ds_config": "ds_configs/zero2_cpu.json",
                "num_threads": 1,
            },
        }
        (folder / "run.yaml").write_text(yaml.safe_dump(tree))
        self.run, self._said = folder / "runs" / "run", folder / "said.txt"
        environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": uri}
        command = [sys.executable, "-m", "rb.cli", "train", "--ranks", "1", "--run", str(folder / "run.yaml")]
        with self._said.open("wb") as output:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        self.phases: list[tuple[str, float, float, float]] = []

    @contextmanager
    def phase(self, name: str, seconds: float) -> Iterator[None]:
        """What is done in the block is not measured, the seconds after it are."""
        yield
        began, queued = time.time(), self._queued()
        while time.time() < began + seconds:
            assert self.process.poll() is None, self._said.read_text()
            time.sleep(0.1)
        self.phases.append((name, began, time.time(), self._queued() - queued))

    def _queued(self) -> float:
        """Seconds that the rank's main thread has waited for a processor, which other work on this machine had."""
        rank = (self.run / "training.lock").read_text().split()[1]
        return int(Path(f"/proc/{rank}/task/{rank}/schedstat").read_text().split()[1]) / 1e9

    def measured(self) -> list[tuple[str, list[float], float]]:
        """Of each phase, in order: name, seconds of each step, mean seconds of a step without the waits for a processor."""
        rows = [row for row, _ in read_rows(self.run / "journal.jsonl") if row["kind"] == "metrics"]
        ends = [row["time"] for row in rows]
        found = []
        for name, first, last, queued in self.phases:
            steps = [end - start for start, end in pairwise(ends) if first <= start and end <= last]
            found.append((name, steps, (last - first - queued) / len(steps)))
        return found

    def lines(self, piece: str) -> int:
        return (self.run / "log.txt").read_text().count(piece)

    def wait_until(self, happened: Callable[[], object]) -> None:
        end = time.monotonic() + 300
        while not happened():
            assert self.process.poll() is None, self._said.read_text()
            assert time.monotonic() < end, (self.run / "log.txt").read_text()
            time.sleep(0.2)


def test_steps_of_a_training_whose_server_goes_away_four_times(
    foundation: FoundationConfig, tmp_path: Path, figures: Figures
) -> None:
    with small_disk(tmp_path / "disk", "64m") as disk, mlflow_server(disk.path / "mlflow.db") as server:
        training = Training(foundation, tmp_path, server.uri)
        try:
            journal = training.run / "journal.jsonl"
            training.wait_until(lambda: journal.exists() and len(metric_points(journal).get("train/lr", [])) > 20)
            with training.phase("live", LIVE_S):
                pass
            with training.phase("stopped", AWAY_S):
                server.send(signal.SIGSTOP)
            with training.phase("live", LIVE_S):
                training.wait_until(lambda: training.lines("cannot be reached") == 1)
                server.send(signal.SIGCONT)
                training.wait_until(lambda: training.lines("is back") == 1)
                shutil.copy(disk.path / "mlflow.db", tmp_path / "older.db")
            with training.phase("killed", AWAY_S / 2):
                server.send(signal.SIGKILL)
            with training.phase("live", LIVE_S):
                training.wait_until(lambda: training.lines("cannot be reached") == 2)
                shutil.copy(tmp_path / "older.db", disk.path / "mlflow.db")  # what a restored backup is
                server.start()
                training.wait_until(lambda: training.lines("is back") == 2)
            with training.phase("full", AWAY_S / 2):
                disk.fill()
                training.wait_until(lambda: training.lines("cannot be reached") == 3)
            with training.phase("live", LIVE_S):
                disk.empty()
                training.wait_until(lambda: training.lines("is back") == 3)
            server.send(signal.SIGSTOP)  # and it hangs at the end
            time.sleep(6)
            asked = time.monotonic()
            training.process.send_signal(signal.SIGTERM)
            assert training.process.wait(100) == STOPPED
            figures["seconds from SIGTERM to the end"] = round(time.monotonic() - asked, 1)
        finally:
            if training.process.poll() is None:
                training.process.kill()
        lines = (training.run / "log.txt").read_text().splitlines()
        print("\n".join(line for line in lines if " WARNING " in line or " ERROR " in line))
        server.send(signal.SIGCONT)
        report_steps(training, figures)
        assert training.lines("is back") == 3
        assert training.lines("cannot be reached") in (3, 4)  # the hang at the end may come between two passes
        assert training.lines("lacks the last part") == 1
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("MLFLOW_TRACKING_URI", server.uri)
            sync(training.run)
            compare(training.run, client_at(server.uri), figures)
            assert client_at(server.uri).get_run(run_identity(training.run)["run_id"]).info.status == "KILLED"
        assert figures["seconds from SIGTERM to the end"] < 30


def slow(durations: list[float]) -> float:
    """Their 99th percentile."""
    return quantiles(durations, n=100)[-1]


def report_steps(training: Training, figures: Figures) -> None:
    """Median and 99th percentile of each phase; a step without the server takes no longer than one beside it with a live one.

    The machine may have other work: the mean without waits for a processor is what is held to that.
    """
    phases = training.measured()
    for name, steps, own in phases:
        values = {"median": median(steps), "99th percentile": slow(steps), "mean without waits for a processor": own}
        print(f"{name}: {len(steps)} steps, " + ", ".join(f"{what} {1000 * s:.1f} ms" for what, s in values.items()))
        for what, seconds in values.items():
            key = f"ms a step, server {name}: {what}"
            figures[key] = max(figures.get(key, 0.0), round(1000 * seconds, 1))
    for (_, _, before), (name, steps, own), (_, _, after) in zip(phases[::2], phases[1::2], phases[2::2], strict=False):
        assert own < SLACK * max(before, after), name
        assert max(steps) < LONGEST_S, name


# A tracker alone, at each moment


STEPS = 300
FAULTS = ("down", "hang", "401", "500", "html")


def track(run_dir: Path, stage: Path) -> None:
    """Track STEPS steps; waits at each third for the file that says go; writes what it measured."""
    tracker = Tracker(run_dir, interval_s=0.2)
    slowest = 0.0
    for step in range(1, STEPS + 1):
        began = time.perf_counter()
        tracker.metrics(step, {f"train/image_region/loss_{i}": step / (i + 1) for i in range(5)})
        slowest = max(slowest, time.perf_counter() - began)
        time.sleep(0.01)
        if step % 100 == 0:
            (stage / f"at {step}").touch()
            while not (stage / f"go {step}").exists():
                time.sleep(0.01)
    began = time.perf_counter()
    tracker.finish()
    (stage / "measured").write_text(f"{slowest} {time.perf_counter() - began}")


def wait_for(path: Path, process: Started) -> None:
    end = time.monotonic() + 100
    while not path.exists():
        assert process.poll() is None, process.output()
        assert time.monotonic() < end, process.output()
        time.sleep(0.01)


def test_each_fault_at_the_start_in_the_middle_and_at_the_end(
    trials: Trials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = {f"{fault}, from the {when}": (fault, when) for fault in FAULTS for when in ("start", "middle", "end")}
    with mlflow_server(tmp_path / "mlflow.db") as server:
        for name in trials.left(cases):
            with trials.trial(name) as figures, closing(Door(server.port)) as door:
                monkeypatch.setenv("MLFLOW_TRACKING_URI", door.uri)
                fault, when = cases[name]
                one_fault(tmp_path / name, server, door, fault, when, figures)


def one_fault(folder: Path, server: MlflowServer, door: Door, fault: str, when: str, figures: Figures) -> None:
    stage, run = folder / "stage", folder / "run"
    stage.mkdir(parents=True)
    mode = {"down": "closes"}.get(fault, fault)
    door.mode = mode if when == "start" else "open"
    process = start_function(track, run, stage, MLFLOW_TRACKING_URI=door.uri)
    for step in (100, 200, 300):
        wait_for(stage / f"at {step}", process)
        if (when, step) in (("middle", 100), ("end", 300)):
            door.mode = mode
        (stage / f"go {step}").touch()
    output = finish(process)
    slowest, end = map(float, (stage / "measured").read_text().split())
    figures |= {"longest call, ms": round(1000 * slowest, 1), "wait at the end, s": round(end, 1)}
    said = "refuses this user" if fault == "401" else "cannot be reached"
    assert output.count(said) <= 1, output
    assert when == "end" or said in output  # at the end the last pass may be cut short by the end itself
    assert output.count("rb track sync " + str(run)) >= 1, output
    assert slowest < 1.0
    assert end < 31
    with pytest.raises(TrackingError):
        sync(run)
    door.mode = "open"
    sync(run)
    compare(run, client_at(server.uri), figures)


def test_a_killed_run_is_closed_by_its_supervisor_even_where_the_server_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    run, stage = tmp_path / "run", tmp_path / "stage"
    stage.mkdir()
    with mlflow_server(tmp_path / "mlflow.db") as server, closing(Door(server.port)) as door:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", door.uri)
        process = start_function(track, run, stage, MLFLOW_TRACKING_URI=door.uri)
        wait_for(stage / "at 100", process)
        while "run_id" not in run_identity(run):
            time.sleep(0.05)
        door.mode = "hang"
        (stage / "go 100").touch()
        wait_for(stage / "at 200", process)
        process.send(signal.SIGKILL)
        process.wait()
        began = time.monotonic()
        assert not close_ended_run(run, "FAILED")
        figures["supervisor waits, s"] = round(time.monotonic() - began, 1)
        assert figures["supervisor waits, s"] < 12
        door.mode = "open"
        sync(run)
        compare(run, client_at(server.uri), figures)
        assert client_at(server.uri).get_run(run_identity(run)["run_id"]).info.status == "FAILED"


# Rights


def test_a_server_with_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: Figures) -> None:
    """MLflow's own ``basic-auth``: nobody, a wrong password, a user who may only read, then one who may write."""
    (tmp_path / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{tmp_path}/auth.db\nadmin_username = admin\n"
        "admin_password = a long password\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    variables = {"MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": "for tests"}
    with mlflow_server(tmp_path / "mlflow.db", "--app-name", "basic-auth", **variables) as server:
        from mlflow.server import get_app_client

        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        be(monkeypatch, "admin", "a long password")
        get_app_client("basic-auth", server.uri).create_user("reader", "another password")
        client_at(server.uri).create_experiment("theirs")
        with Tracker(tmp_path / "run", experiment="theirs", mlflow=False) as tracker:
            for step in range(100):
                tracker.metrics(step, {"train/lr": 1.0})
        for user, password, code in (("", "", 401), ("admin", "wrong", 401), ("reader", "another password", 403)):
            be(monkeypatch, user, password)
            with pytest.raises(TrackingError, match=rf"refuses this user \(answer {code}\); let MLFLOW_TRACKING_USER"):
                sync(tmp_path / "run")
        be(monkeypatch, "admin", "a long password")
        sync(tmp_path / "run")
        compare(tmp_path / "run", client_at(server.uri), figures)


def be(monkeypatch: pytest.MonkeyPatch, user: str, password: str) -> None:
    for name, value in (("USERNAME", user), ("PASSWORD", password)):
        if value:
            monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
        else:
            monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)


# Stores made at once


def track_one_value(run_dir: Path) -> None:
    with Tracker(run_dir, experiment="exp") as tracker:
        tracker.metrics(1, {"a": 1.0})
        tracker.finish(timeout_s=200)


def test_four_ranks_make_each_of_twenty_stores_at_once(
    trials: Trials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in trials.left(f"fresh store {number}" for number in range(1, 21)):
        with trials.trial(name) as figures:
            root = tmp_path / name
            began = time.monotonic()
            output = finish(*[start_function(track_one_value, root / f"run{i}") for i in range(4)])
            figures |= {"seconds": round(time.monotonic() - began, 1), "warnings": output.count("WARNING")}
            assert output == ""
            client = client_of(root)
            runs = client.search_runs([client.get_experiment_by_name("exp").experiment_id])
            assert sorted((run.info.status, run.data.metrics["a"]) for run in runs) == [("FINISHED", 1.0)] * 4
