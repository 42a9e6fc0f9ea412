"""Runs whose process is gone without having said how it ended are closed, in the journal and in MLflow.

A supervisor knows that the ranks have ended, and why: it calls ``close_ended_run``. Where there was none, or it was killed too, such runs are found
by their lock and closed as KILLED: every command that tracks, scores or syncs looks at all run folders beside its own. A file system without
locks proves nothing: there no run is closed so.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from rb.core.install import import_path
from rb.core.locks import FileLock
from rb.core.run_layout import RUN_EVALUATIONS, RUN_JOURNAL, RUN_MLFLOW, TRACKING_LOCK
from rb.tracking.copier import JournalCopier, retry_errors
from rb.tracking.errors import TrackingError, reason, say_behind
from rb.tracking.identity import RUN_ID, TRACKING_URI, run_identity
from rb.tracking.journal import Journal, last_row, read_rows
from rb.tracking.mlflow_store import tracking_uri

_LOCK_WAIT_S = 2.0  # for a command that looks at the run for a moment

_log = logging.getLogger(__name__)


def close_ended_run(run_dir: Path, status: str, limit_s: float = 10.0) -> bool:
    """Close a run whose ranks have all ended without an end marker; for its supervisor. Whether journal and MLflow now say how it ended.

    Does nothing where the run itself has said so, or has no journal yet. MLflow is told by a process that is ended after ``limit_s``; what it lacks
    then is said. Never raises. A restarted run sets itself to RUNNING again.

    Args:
        run_dir: the run folder.
        status: FAILED for a fault (hang, node lost, rank died), KILLED for a stop.
        limit_s: longest time for MLflow; the whole call takes at most 2 seconds more.
    """
    assert status in ("FAILED", "KILLED"), status
    run_dir = run_dir.resolve()
    try:
        if not _write_end(run_dir, status):
            return True
    except (OSError, TrackingError) as error:
        _log.warning("%s: cannot be closed as %s (%s)", run_dir, status, error)
        return False
    if not _in_mlflow(run_dir, run_dir.parent):
        return True
    command = [sys.executable, "-m", "rb.tracking.send", str(run_dir), str(limit_s)]
    try:
        sent = subprocess.run(
            command, env=import_path(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit_s
        )
        if sent.returncode == 0:
            return True
        why = sent.stdout.strip() or f"exit code {sent.returncode}"
    except (OSError, subprocess.SubprocessError):
        why = f"no answer in {limit_s:g} s"
    say_behind(_log, tracking_uri(run_dir.parent), run_dir, why)
    return False


def _write_end(folder: Path, status: str) -> bool:
    """Whether a status row had to be written. A KILLED that another command wrote, because the lock was free, gives way to FAILED."""
    replaced = ("RUNNING", "KILLED") if status == "FAILED" else ("RUNNING",)
    if last_status(folder) not in replaced:
        return False
    lock, end = FileLock(folder / TRACKING_LOCK), time.monotonic() + _LOCK_WAIT_S
    while not lock.acquire():
        if time.monotonic() > end:
            raise TrackingError(f"{lock.owner() or 'another process'} tracks it")
        time.sleep(0.05)
    try:
        if last_status(folder) not in replaced:
            return False
        with closing(Journal(folder / RUN_JOURNAL)) as journal:
            journal.write("status", status=status)
        return True
    finally:
        lock.release()


def close_if_dead(folder: Path, lock: FileLock | None = None) -> bool:
    """Write KILLED into the journal of a dead run, at the time of its last sign of life; whether this was one.

    Args:
        lock: of the folder, if the caller holds it.
    """
    if last_status(folder) != "RUNNING":
        return False
    held = lock or FileLock(folder / TRACKING_LOCK)
    if not held.acquire():
        return False
    try:
        last = last_row(folder / RUN_JOURNAL)
        if not held.certain or last is None or last_status(folder) != "RUNNING":
            return False
        with closing(Journal(folder / RUN_JOURNAL)) as journal:
            journal.write("status", status="KILLED", time=last["time"])
        return True
    finally:
        if lock is None:
            held.release()


def last_status(folder: Path) -> str:
    """The last status that a journal holds; empty where it holds none."""
    row = last_row(folder / RUN_JOURNAL)
    if row is not None and row["kind"] == "status":
        return str(row.get("status", ""))
    status = ""
    for row, _ in read_rows(folder / RUN_JOURNAL, on_bad=lambda _: None):
        if row["kind"] == "status":
            status = str(row.get("status", ""))
    return status


def close_dead_runs(root: Path, own: Path | None = None, stop: Callable[[], bool] = lambda: False) -> list[Path]:
    """Close the dead ones among the runs in ``root`` and their evaluations, in MLflow too where it knows them; which they were.

    Args:
        root: the folder that run folders lie in; its store is theirs.
        own: a folder to leave alone.
        stop: asked in between; what is left is for the next command.
    """
    closed = []
    journals = [*root.glob(f"*/{RUN_JOURNAL}"), *root.glob(f"*/{RUN_EVALUATIONS}/*/{RUN_JOURNAL}")]
    for folder in sorted(path.parent for path in journals):
        if stop():
            break
        try:
            if folder == own or not close_if_dead(folder):
                continue
            closed.append(folder)
            _log.info("%s: its process is gone; the run is closed as KILLED", folder)
            _copy(folder, root, stop)
        except (OSError, TrackingError) as error:  # somebody else's folder: no reason to stop
            _log.info("%s: cannot be closed (%s)", folder, error)
    return closed


def _in_mlflow(folder: Path, root: Path) -> bool:
    """Whether the store of ``root`` has a run of this folder, as far as the folder knows."""
    if not (folder / RUN_MLFLOW).is_file():
        return False
    identity = run_identity(folder)
    return identity.get(TRACKING_URI) == tracking_uri(root) and RUN_ID in identity


def _copy(folder: Path, root: Path, stop: Callable[[], bool]) -> None:
    if not _in_mlflow(folder, root):
        return
    lock = FileLock(folder / TRACKING_LOCK)
    if not lock.acquire():
        return
    try:
        JournalCopier(folder, root).pump(stop)
    except retry_errors() as error:
        _log.info("%s: MLflow cannot be reached (%s)", folder, reason(error))
    finally:
        lock.release()
