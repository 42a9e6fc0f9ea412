"""Scores of an evaluation job: its own run in MLflow, and points in the training run at the checkpoint's step.

The job's journal is in its own folder, so that it survives an MLflow outage and ``rb track sync`` can send it later. Logging the
same job again (scores computed again) uses the same MLflow run.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from rb.core.locks import FileLock
from rb.core.metric_names import evaluation_name
from rb.core.run_layout import RUN_EVALUATIONS, RUN_JOURNAL, TRACKING_LOCK
from rb.tracking.client_tags import client_tags
from rb.tracking.closing import close_dead_runs, close_if_dead
from rb.tracking.identity import EXPERIMENT, run_identity
from rb.tracking.journal import Journal
from rb.tracking.mlflow_copy import MlflowCopy
from rb.tracking.tracker import flatten

TIMEOUT_S = 60.0  # how long a finished job waits for MLflow
CLOSING_S = 10.0  # and how long it may copy runs of dead processes

_log = logging.getLogger(__name__)


class ScoredSet(NamedTuple):
    """The set of examples that was scored: its data set and split, a digest of its ids and references, and where they were read."""

    dataset: str
    split: str
    digest: str = ""
    source: str = ""


def score_names(scores: Mapping[str, float], dataset: str, split: str) -> dict[str, float]:
    """{"CIDEr": x} as {"eval/<dataset>/<split>/CIDEr": x}."""
    return {evaluation_name(dataset, split, metric): float(value) for metric, value in scores.items()}


def log_evaluation(  # noqa: PLR0913 (all by name)
    scores: Mapping[str, float],
    *,
    name: str,
    data: ScoredSet,
    run_dir: str | Path | None = None,
    job_dir: str | Path | None = None,
    step: int | None = None,
    tags: Mapping[str, object] | None = None,
    started: float | None = None,
    mlflow: bool = True,
    checkpoint: str | None = None,
) -> bool:
    """Log the scores of one set of predictions; whether MLflow has them (if not, a warning is logged, and the journals have them).

    The experiment is the training run's; without one it is ``MLFLOW_EXPERIMENT_NAME``, or "regionblip".

    Args:
        scores: metric name to value, e.g. {"CIDEr": 1.2}.
        name: the evaluation's name, unique within its training run.
        data: what was scored.
        run_dir: the training run whose checkpoint was evaluated; its journal gets the scores at ``step``. None for a base model.
        job_dir: folder of the job's own journal; ``RUN_DIR/evaluations/NAME`` where not given.
        step: the checkpoint's step; needed with ``run_dir``.
        tags: what the scores depend on: modality, checkpoint, decoding, reference policy, data digest; nested ones get dotted names.
        started: when scoring began, in seconds since 1970; now where not given.
        mlflow: false writes the journals only.
        checkpoint: path or name of the trained checkpoint whose scores these are; MLflow then has it as a logged model. None for any other variant.

    Raises:
        ValueError: neither ``run_dir`` nor ``job_dir``; ``run_dir`` without ``step``, or without a journal.
    """
    if run_dir is None and job_dir is None:
        raise ValueError("log_evaluation: give job_dir if there is no training run (run_dir)")
    if run_dir is not None and step is None:
        raise ValueError(f"log_evaluation: the step of the checkpoint in {run_dir} is needed to place its scores")
    if run_dir is not None and not (Path(run_dir) / RUN_JOURNAL).exists():
        raise ValueError(f"{run_dir}: no {RUN_JOURNAL} in it, so not a run folder; give the folder of the training run")
    training = Path(run_dir).resolve() if run_dir is not None else None
    values = score_names(scores, data.dataset, data.split)
    marks: dict[str, object] = {"job": "evaluation", "dataset": data.dataset, "split": data.split, **(tags or {})}
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "regionblip")
    title = name
    if training is not None:
        experiment = run_identity(training)[EXPERIMENT]
        title = f"{training.name}-{name}"
        marks |= {"training_run": training.name, "checkpoint_step": step}
        with closing(Journal(training / RUN_JOURNAL)) as journal:
            journal.metrics(step or 0, values)
    folder = Path(job_dir) if job_dir is not None else Path(run_dir or ".") / RUN_EVALUATIONS / name
    run_identity(folder, experiment, title)
    with closing(Journal(folder / RUN_JOURNAL)) as journal:
        journal.write("status", status="RUNNING", time=time.time() if started is None else started)
        journal.write("tags", values=client_tags() | flatten(marks))
        if data.digest:
            journal.write("input", name=data.dataset, digest=data.digest, source=data.source, context="evaluation")
        if training is not None and checkpoint is not None:
            journal.write("model", name=training.name, step=step or 0, checkpoint=checkpoint)
        journal.metrics(step or 0, values)
        journal.write("status", status="FINISHED")
    return _copy(folder, training) if mlflow else False


def _copy(folder: Path, training: Path | None) -> bool:
    """Copy both journals: first the training run's, which is the parent, unless its own process is alive and does it."""
    followed = True
    if training is not None:
        lock = FileLock(training / TRACKING_LOCK)
        if lock.acquire():
            close_if_dead(training, lock)
            followed = MlflowCopy(training, lock=lock).close(TIMEOUT_S)
        else:
            _log.info("%s is tracked by a live process, which copies the scores to MLflow", training)
    copied = MlflowCopy(folder, training.parent if training else None).close(TIMEOUT_S)
    if copied:
        end = time.monotonic() + CLOSING_S
        close_dead_runs((training or folder.resolve()).parent, training or folder, lambda: time.monotonic() > end)
    return copied and followed
