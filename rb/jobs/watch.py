"""``rb evaluate --watch``: every checkpoint of a run is scored as soon as it is written, until the training says that it has ended (`end.json`).

Each checkpoint is a model of the plan, named by its folder. One that the training deletes before its turn is left out, which is said; one that was
scored stays in the table.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rb.checkpoints.checkpoint import step_folders
from rb.core import dist
from rb.core.output import note
from rb.core.run_layout import CHECKPOINTS, RUN_CONFIG, RUN_END, STEP_PREFIX
from rb.jobs import table
from rb.jobs.plan import Cell, Model, Plan
from rb.jobs.results import RECORDS, Results
from rb.jobs.work import Worker

POLL_S = 5.0


def watch(plan: Plan, run_dir: Path, out: Path, mlflow: bool) -> tuple[Results, Sequence[Cell]]:
    """Score checkpoints until the run has ended; the results, and the cells that are to be there.

    Raises:
        ValueError: no run folder.
    """
    if not (run_dir / RUN_CONFIG).is_file():
        raise ValueError(f"--watch {run_dir}: no run folder; give one that rb train writes")
    dist.init()
    watched = Results(plan, out)
    worker, tried = Worker(plan, watched, mlflow), set[Cell]()
    while True:
        # Looked at first: what was written before the end is then seen below.
        over = (run_dir / RUN_END).is_file()
        watched.plan = worker.plan = _with_checkpoints(plan, run_dir, watched)
        todo = [cell for cell in watched.plan.cells if cell not in tried and not watched.is_scored(cell)]
        if todo:
            now = [cell for cell in todo if cell.model == todo[0].model]  # one checkpoint, then look again
            tried.update(now)
            worker.work(now)
            _forget_deleted(watched, run_dir, now)
            table.write(watched, watched.plan.cells)
        elif over:
            return watched, watched.plan.cells
        else:
            time.sleep(POLL_S)


def _with_checkpoints(plan: Plan, run_dir: Path, watched: Results) -> Plan:
    """The plan with the checkpoints that are there, and with those that were scored and are gone; ascending steps."""
    there = (
        {folder.name for folder in step_folders(run_dir / CHECKPOINTS)} if (run_dir / CHECKPOINTS).is_dir() else set()
    )
    earlier = {path.stem.split("-", 1)[0] for path in (watched.out / RECORDS).glob(f"{STEP_PREFIX}*.json")}
    models = {name: Model(checkpoint=str(run_dir / CHECKPOINTS / name)) for name in sorted(there | earlier)}
    return replace(plan, models=plan.models | models)


def _forget_deleted(watched: Results, run_dir: Path, cells: Sequence[Cell]) -> None:
    """Forget the failures of a checkpoint that was deleted before its turn: it is no fault of the evaluation."""
    model = cells[0].model
    if not model.startswith(STEP_PREFIX) or (run_dir / CHECKPOINTS / model).exists():
        return
    gone = [cell for cell in cells if not watched.is_scored(cell)]
    for cell in gone:
        watched.forget(cell)
    if gone:
        note(
            f"rb evaluate: {model} was deleted by the training before it was scored; it is left out (train.keep_checkpoints keeps more)"
        )
