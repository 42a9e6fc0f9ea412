"""``rb track sync RUN_DIR``: send to MLflow what the journals of a run and of its evaluations hold and MLflow lacks. ``rb track best``: checkpoints by a score."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path

from rb.core.exit_codes import FINISHED
from rb.core.locks import FileLock
from rb.core.output import add_json, aligned, say, say_json
from rb.core.run_layout import RUN_EVALUATIONS, RUN_JOURNAL, TRACKING_LOCK
from rb.tracking.closing import close_dead_runs, close_if_dead
from rb.tracking.copier import JournalCopier, retry_errors
from rb.tracking.errors import TrackingError, reason
from rb.tracking.models import best_checkpoints


def add_sync(parser: argparse.ArgumentParser) -> None:
    """``rb track sync``."""
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="run folder")
    parser.add_argument("--store", type=Path, default=None, help="folder of mlflow.db (default: RUN_DIR's parent)")
    parser.set_defaults(run=_sync)


def _sync(args: argparse.Namespace) -> int:
    for line in sync(args.run_dir, args.store):
        say(line)
    return FINISHED


def add_best(parser: argparse.ArgumentParser) -> None:
    """``rb track best``."""
    parser.description = "The checkpoints of an experiment by a score that rb score logged, best first."
    parser.add_argument("--metric", required=True, metavar="NAME", help="CIDEr, or eval/DATASET/SPLIT/CIDEr")
    parser.add_argument("--experiment", default="regionblip", metavar="NAME", help="MLflow's experiment (regionblip)")
    parser.add_argument("--store", type=Path, default=Path(), help="folder of mlflow.db (.)")
    parser.add_argument("--limit", type=int, default=10, metavar="N", help="lines of each data set (10)")
    add_json(parser)
    parser.set_defaults(run=_best)


def _best(args: argparse.Namespace) -> int:
    if "MLFLOW_TRACKING_URI" not in os.environ and not (args.store / "mlflow.db").exists():
        raise TrackingError(f"{args.store}: no mlflow.db in it; name the folder of the runs by --store")
    sets = [rows[: args.limit] for rows in best_checkpoints(args.store, args.experiment, args.metric)]
    if args.json:
        say_json([[asdict(row) for row in rows] for rows in sets])
        return FINISHED
    for rows in sets:
        say(f"{rows[0].metric} on the set {rows[0].digest[:12]}")
        table = [(row.run, f"step {row.step:,}", row.checkpoint, f"{row.value:.4f}") for row in rows]
        for line in aligned(table, 3, "  "):
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
