"""The MLflow store of a folder of runs: made whole or not at all, a broken one mended or named, and which run a run folder writes to."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from rb.cli import main as rb
from rb.core.files import sha256
from rb.tracking import ScoredSet, Tracker, log_evaluation, mlflow_store, sqlite_store
from rb.tracking.commands import sync
from rb.tracking.errors import TrackingError
from rb.tracking.identity import run_identity
from rb.tracking.mlflow_store import clean_name
from rb.tracking.sqlite_store import cannot_open, prepare_store
from tests.support.disks import small_disk
from tests.support.mlflow_runs import client_of, run_of
from tests.support.processes import finish, start_function
from tests.support.remedies import Said, covers, helps, remedy


def a_run(run_dir: Path, mlflow: bool = True) -> None:
    with Tracker(run_dir, experiment="exp", mlflow=mlflow) as tracker:
        tracker.metrics(1, {"a": 1.0})


def as_if_killed_while_made(path: Path) -> None:
    """What a process leaves that is killed in MLflow's migrations: tables that the noted version does not know of."""
    with closing(sqlite3.connect(path)) as store:
        assert store.execute("SELECT count(*) FROM secrets").fetchone() == (0,)
        store.execute("DROP TABLE endpoints")
        store.execute("UPDATE alembic_version SET version_num = (SELECT '1b5f0d9ad7c1')")
        store.commit()
    hour_ago = time.time() - 3600
    os.utime(path, (hour_ago, hour_ago))


def test_a_process_killed_while_it_makes_a_store_leaves_none(made: Path, runs: Path) -> None:
    left = (made.parent / "left").read_text().split(",")
    assert "mlflow.db" not in left
    assert any(name.startswith(".mlflow.db.") for name in left)
    assert not list(made.parent.glob(".mlflow.db.*"))
    a_run(runs / "run")
    assert run_of(runs / "run").data.metrics == {"a": 1.0}


def test_a_half_made_store_without_runs_is_set_aside(runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    as_if_killed_while_made(runs / "mlflow.db")
    a_run(runs / "run", mlflow=False)
    assert rb(["track", "sync", str(runs / "run")]) == 0
    assert run_of(runs / "run").info.status == "FINISHED"
    assert (runs / "mlflow.db.broken-1").exists()
    assert "half made" in caplog.text


def test_a_broken_store_with_runs_is_named_and_its_remedy_works(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = runs / "mlflow.db"
    finish(start_function(a_run, runs / "run"))  # in another process: MLflow keeps a store that it has opened
    as_if_killed_while_made(path)
    before = sha256(path.read_bytes())
    assert rb(["track", "sync", str(runs / "run")]) == 2
    assert f"mv {path} {path}.broken" in capsys.readouterr().err
    assert sha256(path.read_bytes()) == before
    shutil.move(path, f"{path}.broken")
    assert rb(["track", "sync", str(runs / "run")]) == 0
    assert run_of(runs / "run").data.metrics == {"a": 1.0}


def test_what_is_no_database_is_named_and_left(runs: Path) -> None:
    path = runs / "mlflow.db"
    path.write_bytes(b"what was here is lost" * 200)
    with pytest.raises(TrackingError, match=f"mv {path} "):
        prepare_store(path)
    assert path.stat().st_size == 4200


@pytest.mark.parametrize(
    ("message", "kind", "advice"),
    [
        ("disk I/O error", OSError, "let MLFLOW_TRACKING_URI name a file on a local disk"),
        ("database is locked", OSError, "database is locked"),
        (
            "Detected out-of-date database schema (found version a)",
            TrackingError,
            "mlflow db upgrade sqlite:////x/mlflow.db",
        ),
        ("Can't locate revision identified by 'b'", TrackingError, "mv /x/mlflow.db /x/mlflow.db.broken"),
    ],
)
def test_what_may_pass_is_told_from_what_needs_a_person(message: str, kind: type[Exception], advice: str) -> None:
    error = cannot_open(Path("/x/mlflow.db"), RuntimeError(message))
    assert type(error) is kind
    assert advice in str(error)


def test_a_store_that_another_program_is_just_making_is_left_alone(runs: Path) -> None:
    path = runs / "mlflow.db"
    as_if_killed_while_made(path)
    os.utime(path)
    with pytest.raises(OSError, match="another program may make it"):
        prepare_store(path)
    assert path.exists()


# Which MLflow run a folder writes to


def test_a_copied_run_folder_gets_a_run_for_itself(runs: Path) -> None:
    a_run(runs / "first")
    shutil.copytree(runs / "first", runs / "second")
    with Tracker(runs / "second") as tracker:
        tracker.metrics(2, {"a": 2.0})
    first, second = run_of(runs / "first"), run_of(runs / "second")
    assert first.info.run_id != second.info.run_id
    assert first.data.metrics == {"a": 1.0}
    assert [p.step for p in client_of(runs).get_metric_history(second.info.run_id, "a")] == [1, 2]
    assert second.info.run_name == "second"
    assert second.data.tags["copied_from"] == first.info.run_id
    a_run(runs / "first")
    assert run_of(runs / "first").info.run_id == first.info.run_id


def test_a_moved_run_folder_keeps_its_run_and_so_does_a_copied_folder_of_runs(runs: Path) -> None:
    a_run(runs / "first")
    run_id = run_of(runs / "first").info.run_id
    (runs / "first").rename(runs / "renamed")
    a_run(runs / "renamed")
    assert run_of(runs / "renamed").info.run_id == run_id
    (runs / "link").symlink_to(runs / "renamed")
    a_run(runs / "link")
    assert run_of(runs / "renamed").info.run_id == run_id
    everything = runs / "everything"
    shutil.copytree(runs, everything, symlinks=True, ignore=lambda *_: {"everything"})
    a_run(everything / "renamed")
    assert run_of(everything / "renamed").info.run_id == run_id
    assert run_identity(runs / "renamed")["tracking_uri"] != run_identity(everything / "renamed")["tracking_uri"]


def test_a_full_disk_under_the_store_and_its_artifacts(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("rb.tracking.mlflow_copy.FIRST_RETRY_S", 0.05)
    monkeypatch.setattr("rb.tracking.mlflow_copy.LONGEST_RETRY_S", 0.05)
    with small_disk(tmp_path / "disk", "3m") as disk:
        store = disk.path / "mlflow.db"
        shutil.copy(made, store)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
        with Tracker(tmp_path / "run", interval_s=0.05) as tracker:
            assert tracker.mlflow_run_id()
            disk.fill()
            page = tracker.run_dir / "validation" / "page.html"
            page.parent.mkdir()
            page.write_text("x" * 100_000)
            tracker.artifact(page)
            for step in range(400):
                tracker.metrics(step, {f"train/image_region/loss_{term}": 1.0 for term in "abcde"})
            end = time.monotonic() + 60
            while "cannot be reached" not in caplog.text:
                assert time.monotonic() < end
                time.sleep(0.02)
            disk.empty()
        (said,) = [record.getMessage() for record in caplog.records if "cannot be reached" in record.getMessage()]
        assert str(store) in said
        assert said.endswith("(database or disk is full)") or "No space left" in said
        client = client_of(disk.path)
        run_id = run_identity(tmp_path / "run")["run_id"]
        assert len(client.get_metric_history(run_id, "train/image_region/loss_e")) == 400
        artifact = client.download_artifacts(run_id, "validation/page.html")
        assert Path(artifact).read_bytes() == page.read_bytes()
        assert client.get_run(run_id).info.status == "FINISHED"


def test_names_in_mlflow_are_readable() -> None:
    assert clean_name("trainable_parameters.point_cloud+point_cloud_region") == (
        "trainable_parameters.point_cloud_and_point_cloud_region"
    )
    assert clean_name("eval/refcoco+/val/CIDEr") == "eval/refcocoplus/val/CIDEr"


def test_a_damaged_identity_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.json").write_text("[]")
    with pytest.raises(TrackingError, match=r"mlflow\.json"):
        run_identity(tmp_path)


# What the messages advise


IDENTITY, GONE = (
    "not readable as MLflow's identity of this run ({}); remove it to start a new one",
    "restore it there, or remove {} from the run folder to start a new run",
)
EXPERIMENT, JOURNAL = (
    "restore it there, or go on with --resume and another tracking.experiment",
    "remove mlflow.json from the run folder to start a new MLflow run",
)


@pytest.mark.parametrize(
    ("says", "way"),
    [
        (IDENTITY, "remove"),
        (GONE, "restore"),
        (GONE, "remove"),
        (EXPERIMENT, "restore"),
        (EXPERIMENT, "another"),
        (JOURNAL, "remove"),
    ],
)
def test_what_is_gone_in_mlflow_or_in_the_folder(runs: Path, says: str, way: str) -> None:
    run = runs / "run"
    a_run(run)
    client, identity = client_of(runs), run_identity(run)
    experiment = client.get_experiment_by_name("exp").experiment_id
    if says == IDENTITY:
        (run / "mlflow.json").write_text("[]")
    elif says == GONE:
        client.delete_run(identity["run_id"])
    elif says == EXPERIMENT:
        client.delete_experiment(experiment)
        run = runs / "started while it was gone"
        a_run(run, mlflow=False)
    else:
        (run / "journal.jsonl").write_text("")

    def follow(said: Said) -> None:
        if way == "another":
            Tracker(run, experiment="another", mlflow=False).finish()
        elif way == "remove":
            (run / "mlflow.json").unlink()
        elif says == GONE:
            client.restore_run(identity["run_id"])
        else:
            client.restore_experiment(experiment)

    helps(says, lambda: sync(run), follow)


covers([IDENTITY, GONE, EXPERIMENT, JOURNAL])


@remedy("its file system may have no locks: let MLFLOW_TRACKING_URI name a file on a local disk")
def test_a_store_on_a_file_system_without_locks(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The file system is sound here; what sqlite says of one without locks is put in MLflow's way."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Tracker(tmp_path / "run", experiment="exp", mlflow=False).finish()
    (tmp_path / "DIR").mkdir()
    shutil.copy(made, tmp_path / "DIR/mlflow.db")
    real = sqlite_store.prepare_store

    def prepare(path: Path) -> None:
        if path.parent != tmp_path / "DIR":
            raise cannot_open(path, RuntimeError("disk I/O error"))
        real(path)

    monkeypatch.setattr(mlflow_store, "prepare_store", prepare)

    def follow(said: Said) -> None:
        name, address = said.found(r"let (\w+) name"), said.found(r"\((sqlite:////\S+)\)")
        monkeypatch.setenv(name, address.replace("/DIR", f"{tmp_path}/DIR"))

    return lambda: sync(tmp_path / "run"), follow


@remedy("{}: no {} in it; give a run folder")
def test_sync_of_another_folder(runs: Path):
    Tracker(runs / "run", experiment="exp", mlflow=False).finish()
    folder = [runs]
    return lambda: sync(folder[0]), lambda _: folder.append(folder.pop() / "run")


@pytest.mark.parametrize(
    "says",
    covers(
        [
            "give job_dir if there is no training run (run_dir)",
            "so not a run folder; give the folder of the training run",
        ]
    ),
)
def test_an_evaluation_that_belongs_nowhere(tmp_path: Path, says: str) -> None:
    Tracker(tmp_path / "run", experiment="exp", mlflow=False).finish()
    given = {"name": "x", "data": ScoredSet("d", "s"), "mlflow": False}
    given |= {"run_dir": tmp_path, "step": 1} if "run folder" in says else {}
    advised = {"run_dir": tmp_path / "run"} if "run folder" in says else {"job_dir": tmp_path / "job"}
    helps(says, lambda: log_evaluation({"CIDEr": 1.0}, **given), lambda _: given.update(advised))


# Followed above and in test_tracking.py:
covers(["move the file away (mv {} {}.broken), then rb track sync RUN_DIR"])  # a broken store with runs
covers(["cannot be reached; try again later ({})", "nothing is lost, send it with: rb track sync {}"])  # a dead server
