"""Runs whose process is gone without having said how it ended: found by their lock, and closed as KILLED, in the journal and in MLflow.

Every command that tracks, scores or syncs looks at all run folders beside its own. A file system without locks proves nothing: there no run is closed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from rb.core.locks import FileLock
from rb.core.run_layout import RUN_EVALUATIONS, RUN_JOURNAL, RUN_MLFLOW, TRACKING_LOCK
from rb.tracking.copier import JournalCopier, retry_errors
from rb.tracking.errors import TrackingError, reason
from rb.tracking.identity import RUN_ID, TRACKING_URI, run_identity
from rb.tracking.journal import Journal, last_row, read_rows
from rb.tracking.mlflow_store import tracking_uri

_log = logging.getLogger(__name__)


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
        journal = Journal(folder / RUN_JOURNAL)
        journal.write("status", status="KILLED", time=last["time"])
        journal.close()
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


def _copy(folder: Path, root: Path, stop: Callable[[], bool]) -> None:
    if not (folder / RUN_MLFLOW).is_file():
        return
    identity = run_identity(folder)
    if identity.get(TRACKING_URI) != tracking_uri(root) or RUN_ID not in identity:
        return  # MLflow has nothing of it
    lock = FileLock(folder / TRACKING_LOCK)
    if not lock.acquire():
        return
    try:
        JournalCopier(folder, root).pump(stop)
    except retry_errors() as error:
        _log.info("%s: MLflow cannot be reached (%s)", folder, reason(error))
    finally:
        lock.release()
