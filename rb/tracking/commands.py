"""``rb track sync RUN_DIR``: send to MLflow what the journals of a run and of its evaluations hold and MLflow lacks."""

from __future__ import annotations

import argparse
from pathlib import Path

from rb.core.exit_codes import FINISHED
from rb.core.locks import FileLock
from rb.core.output import say
from rb.core.run_layout import RUN_EVALUATIONS, RUN_JOURNAL, TRACKING_LOCK
from rb.tracking.closing import close_dead_runs, close_if_dead
from rb.tracking.copier import JournalCopier, retry_errors
from rb.tracking.errors import TrackingError, reason


def add_sync(parser: argparse.ArgumentParser) -> None:
    """``rb track sync``."""
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="run folder")
    parser.add_argument("--store", type=Path, default=None, help="folder of mlflow.db (default: RUN_DIR's parent)")
    parser.set_defaults(run=_sync)


def _sync(args: argparse.Namespace) -> int:
    for line in sync(args.run_dir, args.store):
        say(line)
    return FINISHED


def sync(run_dir: str | Path, root: str | Path | None = None) -> list[str]:
    """Copy a run folder's journal and those of its evaluations; one line on each.

    A run whose process is gone without having said how it ended is marked KILLED.

    Raises:
        TrackingError: no journal in ``run_dir``, or MLflow cannot be reached or refuses.
    """
    run_dir = Path(run_dir).resolve()
    if not (run_dir / RUN_JOURNAL).exists():
        raise TrackingError(f"{run_dir}: no {RUN_JOURNAL} in it; give a run folder")
    root = root or run_dir.parent
    jobs = sorted(path.parent for path in (run_dir / RUN_EVALUATIONS).glob(f"*/{RUN_JOURNAL}"))
    lines = [_sync_one(folder, root) for folder in (run_dir, *jobs)]
    closed = close_dead_runs(Path(root).resolve(), run_dir)
    return lines + [f"{folder}: its process is gone; the run is closed as KILLED" for folder in closed]


def _sync_one(folder: Path, root: str | Path) -> str:
    lock = FileLock(folder / TRACKING_LOCK)
    if not lock.acquire():
        return f"{folder}: a live process tracks it and copies by itself"
    try:
        close_if_dead(folder, lock)
        copier = JournalCopier(folder, root)
        try:
            copier.pump()
        except TrackingError:
            raise
        except retry_errors() as error:
            raise TrackingError(
                f"MLflow at {copier.uri} cannot be reached; try again later ({reason(error)})"
            ) from error
        return f"{folder}: {copier.points} points sent, MLflow run {copier.run_id} in {copier.uri} is complete"
    finally:
        lock.release()
