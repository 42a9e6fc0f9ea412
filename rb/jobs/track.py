"""The table of a plan in MLflow: a run of its own with every score as a metric, and the three files as artifacts.

The scores of single cells are logged where they are scored, as runs below their training run; this run is for a look at all of them together.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from rb.core.metric_names import cell_name
from rb.core.run_layout import RUN_EVALUATIONS, RUN_JOURNAL
from rb.jobs.plan import Plan
from rb.jobs.table import DATA, PAGE, TEXT, Entry
from rb.tracking.client_tags import client_tags
from rb.tracking.evaluations import TIMEOUT_S
from rb.tracking.identity import run_identity
from rb.tracking.journal import Journal
from rb.tracking.mlflow_copy import MlflowCopy


def log_table(out: Path, plan: Plan, entries: Sequence[Entry]) -> bool:
    """Log the table that was written to ``out``; whether MLflow has it (if not, ``rb track sync`` sends it later)."""
    folder = out / RUN_EVALUATIONS / "table"
    run_identity(folder, os.environ.get("MLFLOW_EXPERIMENT_NAME", "regionblip"), f"evaluation-{plan.name}")
    values = {
        cell_name(e.cell.task, e.cell.model, e.cell.variant, name): value / 100
        for e in entries
        for name, value in e.scores.items()
    }
    with closing(Journal(folder / RUN_JOURNAL)) as journal:
        journal.write("status", status="RUNNING", time=time.time())
        journal.write("tags", values=client_tags() | {"job": "evaluation plan", "plan": plan.name})
        if values:
            journal.metrics(0, values)
        for name in (TEXT, DATA, PAGE):
            journal.write("artifact", path=str(out / name))
        journal.write("status", status="FINISHED")
    return MlflowCopy(folder).close(TIMEOUT_S)
