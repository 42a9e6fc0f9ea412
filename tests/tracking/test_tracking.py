"""Tracking: what the journal holds and survives, and what MLflow holds of it, read back through MLflow's own client."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rb.cli import main as rb
from rb.core.locks import FileLock
from rb.core.run_layout import TRACKING_LOCK
from rb.tracking import Journal, ScoredSet, Tracker, log_evaluation, metric_points
from rb.tracking.bad_steps import BadStep, RankLosses
from rb.tracking.commands import sync
from rb.tracking.errors import TrackingError
from rb.tracking.identity import run_identity
from rb.tracking.journal import read_rows
from rb.tracking.mlflow_store import OFFSET_TAG, clean_name
from rb.tracking.tracker import flatten
from tests.support.mlflow_runs import all_points, client_of
from tests.support.processes import TIMEOUT_S, finish, start_function

ROOT = Path(__file__).parents[2]
TERMS = ("itc", "itm", "itg", "llm", "total")


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)


def run_id_of(run_dir: Path) -> str:
    return run_identity(run_dir)["run_id"]


def losses(step: int, modality: str = "image_region") -> dict[str, float]:
    return {f"train/{modality}/loss_{term}": 1.0 / (1 + step) + i for i, term in enumerate(TERMS)}


# The journal alone


def test_journal_keeps_every_float(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.metrics(3, {"a": float("nan"), "b": float("inf"), "c": float("-inf"), "d": 0.1 + 0.2})
    points = metric_points(journal.path)
    assert math.isnan(points["a"][0].value)
    assert [points[name][0].value for name in "bcd"] == [math.inf, -math.inf, 0.1 + 0.2]
    json.loads(journal.path.read_text(), parse_constant=lambda word: pytest.fail(f"not JSON: {word}"))


def test_torn_last_line_is_ignored_then_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    first = Journal(path)
    first.metrics(1, {"a": 1.0})
    first.close()
    with path.open("ab") as file:
        file.write(b'{"kind": "metrics", "step": 2, "val')
    problems: list[str] = []
    assert [row["step"] for row, _ in read_rows(path, on_bad=problems.append)] == [1]
    second = Journal(path)
    second.metrics(3, {"a": 3.0})
    assert [row["step"] for row, _ in read_rows(path, on_bad=problems.append)] == [1, 3]
    assert not problems


def test_any_other_bad_line_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).metrics(1, {"a": 1.0})
    with path.open("ab") as file:
        file.write(b'garbage\n{"kind": "surprise", "time": 1}\n')
        file.write(b'{"kind": "bad_step", "time": 1, "step": 1, "modality": "image", "ranks": [{"terms": ["itc"]}]}\n')
    Journal(path).metrics(2, {"a": 2.0})
    problems: list[str] = []
    assert [row["step"] for row, _ in read_rows(path, on_bad=problems.append)] == [1, 2]
    assert len(problems) == 3
    assert all(str(path) in problem for problem in problems)


def test_resume_supersedes_later_steps(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    for step in (10, 20, 30, 40):
        journal.metrics(step, {"a": float(step)})
    journal.truncate_after(20)
    journal.metrics(25, {"a": 2.5})
    journal.metrics(30, {"a": 3.0})
    points = metric_points(journal.path)["a"]
    assert [(p.step, p.value) for p in points] == [(10, 10.0), (20, 20.0), (25, 2.5), (30, 3.0)]


def test_threads_and_processes_share_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    code = "import sys; from rb.tracking.journal import Journal\nj = Journal(sys.argv[1])\n"
    code += "for i in range(300): j.metrics(i, {'other/' + 'x' * (i % 50): 1.0})"
    other = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT)
    journal = Journal(path)

    def write(name: str) -> None:
        for step in range(300):
            journal.metrics(step, {name: float(step)})

    threads = [threading.Thread(target=write, args=(f"thread{i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert other.wait() == 0
    problems: list[str] = []
    assert len(list(read_rows(path, on_bad=problems.append))) == 1200
    assert not problems


def test_flatten_and_names() -> None:
    nested = {"data": {"train": {"image": [{"manifest": "m", "repeat": 1}]}}, "betas": (0.9, 0.999), "x": None}
    assert flatten(nested) == {
        "data.train.image.0.manifest": "m",
        "data.train.image.0.repeat": "1",
        "betas": "[0.9, 0.999]",
        "x": "None",
    }
    assert clean_name("eval/refcoco+/val/BLEU-4") == "eval/refcocoplus/val/BLEU-4"
    assert clean_name("a[b]@c") == "a_b__c"


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with Tracker(tmp_path / "run", enabled=False) as tracker:
        tracker.params({"a": 1})
        tracker.metrics(1, {"a": 1.0})
    assert not (tmp_path / "run").exists()


# The copy in MLflow


def test_everything_lands_in_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_dir = tmp_path / "runs" / "first"
    digest = "0123456789abcdef" * 4
    with Tracker("runs/first", experiment="exp", interval_s=0.1) as tracker:
        monkeypatch.chdir("/")  # the store must not depend on the working folder
        (run_dir / "config.yaml").write_text("seed: 0\n")
        tracker.params({"optim": {"lr": 1e-4}, "long": "x" * 600, **{f"p{i}": i for i in range(150)}})
        tracker.tags({"git_commit": "abc", "trainable_parameters.image_region": 5585799})
        tracker.inputs([("refcoco+", digest, "/data/refcoco/manifest.json")])
        tracker.inputs([("refcoco+", digest[::-1], "/data/val/manifest.json")], "validation")
        tracker.artifact(run_dir / "config.yaml")
        (run_dir / "validation").mkdir()
        (run_dir / "validation" / "step_0000001.html").write_text("<p>a red cube</p>")
        tracker.artifact(run_dir / "validation" / "step_0000001.html")
        tracker.bad_step(
            BadStep(1, "image", (RankLosses({"llm": math.nan}, ["a"], [0]),))
        )  # which MLflow has no place for
        for step in range(250):
            tracker.metrics(step, {**losses(step), "train/lr": 1e-4, "bad/nan": math.nan, "bad/inf": math.inf})
    client = client_of(tmp_path / "runs")
    run = client.get_run(run_id_of(run_dir))
    assert client.get_experiment(run.info.experiment_id).name == "exp"
    assert (run.info.run_name, run.info.status) == ("first", "FINISHED")
    assert run.data.params["optim.lr"] == "0.0001"
    assert len(run.data.params) == 152
    assert run.data.params["long"] == "x" * 500
    assert run.data.tags["trainable_parameters.image_region"] == "5585799"
    assert run.inputs is not None
    inputs = {
        (d.dataset.name, d.dataset.digest, *(tag.value for tag in sorted(d.tags, key=lambda t: t.key)))
        for d in run.inputs.dataset_inputs
    }
    assert inputs == {
        ("refcoco+", digest[:36], digest, "training"),
        ("refcoco+", digest[::-1][:36], digest[::-1], "validation"),
    }
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["config.yaml", "validation"]
    (page,) = client.list_artifacts(run.info.run_id, "validation")
    assert Path(client.download_artifacts(run.info.run_id, page.path)).read_text() == "<p>a red cube</p>"
    for name in losses(0):
        history = client.get_metric_history(run.info.run_id, name)
        assert [(p.step, p.value) for p in history] == [(step, losses(step)[name]) for step in range(250)]
    assert math.isnan(run.data.metrics["bad/nan"])
    assert run.data.metrics["bad/inf"] > 1e308
    assert set(all_points(client, run.info.run_id).values()) == {1}
    assert client.search_experiments(filter_string="name = 'exp'")[0].artifact_location.startswith(tmp_path.as_uri())


def test_resume_uses_the_same_run_without_duplicates(runs: Path) -> None:
    run_dir = runs / "run"
    with pytest.raises(RuntimeError), Tracker(run_dir, interval_s=0.1) as tracker:
        tracker.params({"lr": 1, "seed": 0})
        for step in (10, 20, 30):
            tracker.metrics(step, losses(step))
        raise RuntimeError("a crash")
    client = client_of(runs)
    assert client.get_run(run_id_of(run_dir)).info.status == "FAILED"
    with Tracker(run_dir, interval_s=0.1) as tracker:
        tracker.resumed(10)
        tracker.params({"lr": 2, "seed": 0, "new": 3})
        for step in (20, 25, 30, 40):
            tracker.metrics(step, losses(step))
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "1", "seed": "0", "new": "3"}
    assert {k: v for k, v in run.data.tags.items() if "changed" in k} == {"param_changed.lr": "2"}
    assert all_points(client, run.info.run_id) == {(name, s): 1 for name in losses(0) for s in (10, 20, 25, 30, 40)}


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_dead_server_never_blocks_a_step(
    runs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = runs / "run"
    with monkeypatch.context() as away, caplog.at_level(logging.WARNING, "rb"):
        away.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port()}")
        tracker = Tracker(run_dir, interval_s=0.05)
        stalls = []
        for step in range(400):
            start = time.perf_counter()
            tracker.metrics(step, losses(step))
            stalls.append(time.perf_counter() - start)
            time.sleep(0.005)
        start = time.perf_counter()
        tracker.finish(timeout_s=3.0)
        assert time.perf_counter() - start < 5.0
    # A blocked call takes seconds; a single slow one may be the machine's other work.
    assert sorted(stalls)[-3] <= 0.05, f"{sorted(stalls)[-3] * 1000:.1f} ms"
    assert max(stalls) <= 1.0, f"{max(stalls) * 1000:.1f} ms"
    assert len([r for r in caplog.records if "cannot be reached" in r.message]) == 1
    assert any("rb track sync" in r.message for r in caplog.records)

    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port()}")
        with pytest.raises(TrackingError, match="cannot be reached"):
            sync(run_dir)
    for _ in range(2):
        assert rb(["track", "sync", str(run_dir)]) == 0
    client = client_of(runs)
    assert all_points(client, run_id_of(run_dir)) == {(name, s): 1 for name in losses(0) for s in range(400)}
    assert client.get_run(run_id_of(run_dir)).info.status == "FINISHED"


def track_until_killed(run_dir: Path, resumed: int) -> None:
    tracker = Tracker(run_dir, interval_s=0.0)
    if resumed:
        tracker.resumed(resumed)
    for step in range(resumed + 1, 100000):
        tracker.metrics(step, {f"train/m/loss_{i}": step + i for i in range(5)})
        time.sleep(0.002)


def test_killed_while_copying_then_synced(runs: Path) -> None:
    run_dir = runs / "run"
    resumed = 0
    journal = run_dir / "journal.jsonl"
    for more in (3000, 6000):
        written_before = journal.stat().st_size if journal.exists() else 0
        process = start_function(track_until_killed, run_dir, resumed)
        wait_for_copy(runs, run_dir, written_before + more)
        process.send(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        resumed = max(p.step for p in metric_points(run_dir / "journal.jsonl")["train/m/loss_0"]) - 50
    for _ in range(2):
        sync(run_dir)
    client = client_of(runs)
    run = client.get_run(run_id_of(run_dir))
    assert run.info.status == "KILLED"
    written = {(n, p.step) for n, points in metric_points(run_dir / "journal.jsonl").items() for p in points}
    assert all_points(client, run.info.run_id) == dict.fromkeys(written, 1)
    # Killed between a piece and the note of it: the piece is sent again.
    client.set_tag(run.info.run_id, OFFSET_TAG, str(middle_of(run_dir / "journal.jsonl")))
    sync(run_dir)
    assert all_points(client, run.info.run_id) == dict.fromkeys(written, 1)


def wait_for_copy(root: Path, run_dir: Path, offset: int) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if (run_dir / "mlflow.json").exists() and run_identity(run_dir).get("run_id"):
            tags = client_of(root).get_run(run_id_of(run_dir)).data.tags
            if int(tags.get(OFFSET_TAG, 0)) > offset:
                return
        time.sleep(0.1)
    pytest.fail("nothing was copied in 60 s")


def middle_of(path: Path) -> int:
    ends = [end for _, end in read_rows(path)]
    return ends[len(ends) // 2]


def test_a_live_run_is_left_alone(tmp_path: Path) -> None:
    with Tracker(tmp_path / "run", mlflow=False) as tracker:
        tracker.metrics(1, {"a": 1.0})
        (line,) = sync(tmp_path / "run")
        assert "live process" in line
    assert not (tmp_path / "mlflow.db").exists()


def test_a_forked_worker_does_not_hold_the_lock(tmp_path: Path) -> None:
    code = "import os, sys, time; from rb.tracking import Tracker\nt = Tracker(sys.argv[1], mlflow=False)\n"
    code += "child = os.fork()\nif child == 0: time.sleep(30)\nprint(child, flush=True); time.sleep(30)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    try:
        lock = FileLock(tmp_path / "run" / TRACKING_LOCK)
        assert not lock.acquire()
        process.kill()
        process.wait()
        # The child may not have run yet; it then lets go as its first act. One that held the lock would hold it for 30 s.
        end = time.monotonic() + 10
        while not lock.acquire():
            assert time.monotonic() < end, "the forked child holds the lock of its dead parent"
            time.sleep(0.05)
    finally:
        os.kill(worker, signal.SIGKILL)


def track_one_value(run_dir: Path) -> None:
    with Tracker(run_dir, experiment="exp") as tracker:
        tracker.metrics(1, {"a": 1.0})
        tracker.finish(timeout_s=TIMEOUT_S / 2)  # one store after the other is opened, on a machine that may be busy


@pytest.mark.dist
def test_four_jobs_make_one_store_at_once(tmp_path: Path) -> None:
    finish(*[start_function(track_one_value, tmp_path / f"run{i}") for i in range(4)])
    client = client_of(tmp_path)
    experiment = client.get_experiment_by_name("exp")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted((r.info.run_name, r.info.status, r.data.metrics["a"]) for r in runs) == [
        (f"run{i}", "FINISHED", 1.0) for i in range(4)
    ]


def test_evaluation_is_a_run_and_a_point_of_its_training(runs: Path) -> None:
    run_dir = runs / "train"
    with Tracker(run_dir, experiment="exp", interval_s=0.1) as tracker:
        tracker.metrics(100, losses(100))
        tracker.mlflow_run_id()
    job = {"name": "refcoco+-val", "data": ScoredSet("refcoco+", "val"), "run_dir": run_dir, "step": 100}
    assert log_evaluation({"CIDEr": 0.5, "SPICE": 0.1}, **job, tags={"decoding": "beam 5"})
    assert log_evaluation({"CIDEr": 0.5, "SPICE": 0.2}, **job)
    client = client_of(runs)
    training = client.get_run(run_id_of(run_dir))
    assert training.info.status == "FINISHED"
    history = client.get_metric_history(training.info.run_id, "eval/refcocoplus/val/CIDEr")
    assert [(p.step, p.value) for p in history] == [(100, 0.5)]
    evaluation = client.get_run(run_id_of(run_dir / "evaluations" / "refcoco+-val"))
    assert evaluation.info.experiment_id == training.info.experiment_id
    assert evaluation.info.status == "FINISHED"
    assert evaluation.data.tags["training_run_id"] == training.info.run_id
    assert evaluation.data.tags["decoding"] == "beam 5"
    for run in (evaluation, training):
        assert client.get_run(run.info.run_id).data.metrics["eval/refcocoplus/val/SPICE"] == 0.2
    points = metric_points(run_dir / "journal.jsonl")["eval/refcoco+/val/SPICE"]
    assert [(p.step, p.value) for p in points] == [(100, 0.2)]


def test_what_a_user_can_get_wrong(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"no journal\.jsonl"):
        sync(tmp_path)
    with pytest.raises(ValueError, match="not a run folder"):
        log_evaluation({"CIDEr": 1.0}, name="x", data=ScoredSet("d", "s"), run_dir=tmp_path, step=1)
    with pytest.raises(ValueError, match="step of the checkpoint"):
        log_evaluation({"CIDEr": 1.0}, name="x", data=ScoredSet("d", "s"), run_dir=tmp_path)
    with pytest.raises(ValueError, match="job_dir"):
        log_evaluation({"CIDEr": 1.0}, name="x", data=ScoredSet("d", "s"))
    (tmp_path / "mlflow.json").write_text("{")
    with pytest.raises(TrackingError, match=r"mlflow\.json"):
        run_identity(tmp_path)
    with pytest.raises(ValueError, match="status"):
        Tracker(tmp_path / "run", enabled=False).finish("DONE")
