"""Scores of an evaluation job: its own run in MLflow, and points in the training run at the checkpoint's step.

The job's journal is in its own folder, so that it survives an MLflow outage and ``rb track sync`` can send it later. Logging the
same job again (scores computed again) uses the same MLflow run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from rb.core.locks import FileLock
from rb.core.metric_names import evaluation_name
from rb.core.run_layout import RUN_EVALUATIONS, RUN_JOURNAL, TRACKING_LOCK
from rb.tracking.journal import Journal
from rb.tracking.mlflow_copy import MlflowCopy
from rb.tracking.mlflow_store import run_identity

TIMEOUT_S = 60.0  # how long a finished job waits for MLflow

_log = logging.getLogger(__name__)


def score_names(scores: Mapping[str, float], dataset: str, split: str) -> dict[str, float]:
    """{"CIDEr": x} as {"eval/<dataset>/<split>/CIDEr": x}."""
    return {evaluation_name(dataset, split, metric): float(value) for metric, value in scores.items()}


def log_evaluation(
    scores: Mapping[str, float],
    *,
    name: str,
    dataset: str,
    split: str,
    run_dir: str | Path | None = None,
    job_dir: str | Path | None = None,
    step: int | None = None,
    tags: Mapping[str, object] | None = None,
    mlflow: bool = True,
) -> bool:
    """Log the scores of one set of predictions; whether MLflow has them (if not, a warning is logged, and the journals have them).

    The experiment is the training run's; without one it is ``MLFLOW_EXPERIMENT_NAME``, or "regionblip".

    Args:
        scores: metric name to value, e.g. {"CIDEr": 1.2}.
        name: the evaluation's name, unique within its training run.
        run_dir: the training run whose checkpoint was evaluated; its journal gets the scores at ``step``. None for a base model.
        job_dir: folder of the job's own journal; ``RUN_DIR/evaluations/NAME`` where not given.
        step: the checkpoint's step; needed with ``run_dir``.
        tags: what the scores depend on: modality, checkpoint, decoding, reference policy, data digest.
        mlflow: false writes the journals only.

    Raises:
        ValueError: neither ``run_dir`` nor ``job_dir``; ``run_dir`` without ``step``, or without a journal.
    """
    if run_dir is None and job_dir is None:
        raise ValueError("log_evaluation: give job_dir if there is no training run (run_dir)")
    if run_dir is not None and step is None:
        raise ValueError(f"log_evaluation: the step of the checkpoint in {run_dir} is needed to place its scores")
    if run_dir is not None and not (Path(run_dir) / RUN_JOURNAL).exists():
        raise ValueError(f"{run_dir}: no {RUN_JOURNAL} in it, so not a run folder; give the folder of the training run")
    named = score_names(scores, dataset, split)
    marks = {"job": "evaluation", "dataset": dataset, "split": split, **(tags or {})}
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "regionblip")
    if run_dir is not None:
        run_dir = Path(run_dir).resolve()
        training = run_identity(run_dir)
        experiment = training["experiment"]
        marks |= {"training_run": run_dir.name, "training_run_id": training.get("run_id", ""), "checkpoint_step": step}
        _append(run_dir, step or 0, named)
    folder = Path(job_dir) if job_dir is not None else Path(run_dir or ".") / RUN_EVALUATIONS / name
    run_identity(folder, experiment, f"{run_dir.name}-{name}" if isinstance(run_dir, Path) else name)
    _append(folder, step or 0, named, marks)
    if not mlflow:
        return False
    root = run_dir.parent if isinstance(run_dir, Path) else None
    copied = MlflowCopy(folder, root).close(TIMEOUT_S)
    return _follow(run_dir) and copied if isinstance(run_dir, Path) else copied


def _append(folder: Path, step: int, values: Mapping[str, float], marks: Mapping[str, object] | None = None) -> None:
    journal = Journal(folder / RUN_JOURNAL)
    try:
        if marks is not None:
            journal.write("tags", values={key: str(value) for key, value in marks.items()})
        journal.metrics(step, values)
        if marks is not None:
            journal.write("status", status="FINISHED")
    finally:
        journal.close()


def _follow(run_dir: Path) -> bool:
    """Copy the training run's journal too, unless its own process is alive and does it."""
    lock = FileLock(run_dir / TRACKING_LOCK)
    if not lock.acquire():
        _log.info("%s is tracked by a live process, which copies the scores to MLflow", run_dir)
        return True
    return MlflowCopy(run_dir, lock=lock).close(TIMEOUT_S)
