"""Checkpoints as MLflow's logged models, and the best of them: scores become metrics of the checkpoint and of the data set they were measured on.

A logged model is external: MLflow holds its name, run, step and scores, and no weights. It is made once a checkpoint, when a score of it is
first copied, and found again by its tag. So MLflow's own search and its page of models rank checkpoints by any score.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rb.core.metric_names import EVAL, parse_name
from rb.core.metrics import LOWER, METRICS
from rb.tracking.errors import TrackingError, reason
from rb.tracking.mlflow_store import clean_name, clean_value, open_client, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.tracking import MlflowClient

EXTERNAL_TAG = "mlflow.model.isExternal"  # as mlflow.create_external_model sets it
KEY_TAG = "checkpoint_key"
_PAGE = 100  # models of one answer
_SLASHES = str.maketrans("/:.%\"'", "______")  # what the name of a model may not hold

_log = logging.getLogger(__name__)


def model_of(client: MlflowClient, experiment_id: str, run_id: str, key: str, row: Mapping[str, Any]) -> str:
    """Id of a checkpoint's logged model, made where missing; empty where this MLflow has no logged models (before 3.0).

    Args:
        run_id: of the training, or of the evaluation where there is none.
        key: names the checkpoint for all stores: the training's key and the step.
        row: of the journal: name, step, checkpoint.
    """
    from mlflow.exceptions import MlflowException

    try:
        found = client.search_logged_models([experiment_id], f"tags.{KEY_TAG} = '{key}'", max_results=1)
        if found:
            return str(found[0].model_id)
        tags = {
            EXTERNAL_TAG: "true",
            KEY_TAG: key,
            "training_run": clean_value(row["name"]),
            "checkpoint_step": str(row["step"]),
            "checkpoint": clean_value(row["checkpoint"]),
        }
        name = clean_name(f"{row['name']}-step-{row['step']}").translate(_SLASHES)
        made = client.create_logged_model(experiment_id, name, source_run_id=run_id, tags=tags, model_type="checkpoint")
        client.finalize_logged_model(made.model_id, "READY")
        return str(made.model_id)
    except MlflowException as error:
        if error.error_code not in ("ENDPOINT_NOT_FOUND", "NOT_FOUND"):
            raise
        _log.info("MLflow has no logged models (%s); scores are metrics of runs only", error)
        return ""


@dataclass(frozen=True)
class Ranked:
    """One checkpoint's score: ``metric`` is its full name in MLflow, ``digest`` that of the scored set."""

    metric: str
    value: float
    digest: str
    run: str
    step: int
    checkpoint: str
    model_id: str


def best_checkpoints(root: Path, experiment: str, metric: str) -> list[list[Ranked]]:
    """The checkpoints of an experiment by a score, best first; one list for each data set (by digest) that has it.

    Args:
        root: the folder of runs whose store is asked, where ``MLFLOW_TRACKING_URI`` names no other.
        metric: ``CIDEr``, or the whole name (``eval/refcoco/test/CIDEr``).

    Raises:
        TrackingError: MLflow cannot be reached, has no such experiment, or no checkpoint there has the score.
    """
    from mlflow.exceptions import MlflowException

    uri = tracking_uri(root)
    client = open_client(uri)
    try:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            raise TrackingError(f"MLflow at {uri} has no experiment {experiment!r}; name one by --experiment")
        models = list(_models(client, found.experiment_id))
    except MlflowException as error:
        raise TrackingError(f"MLflow at {uri} does not answer ({reason(error)})") from error
    sets: dict[tuple[str, str], list[Ranked]] = {}
    known = set()
    for model in models:
        for row in _scores(model):
            known.add(row.metric)
            if clean_name(metric) in (row.metric, row.metric.rpartition("/")[2]):
                sets.setdefault((row.metric, row.digest), []).append(row)
    if not sets:
        listed = ", ".join(sorted(known)) or "none: score checkpoints with rb score"
        raise TrackingError(f"no checkpoint of experiment {experiment!r} has the score {metric}; known: {listed}")
    lower = metric.rpartition("/")[2] in (m.name for m in METRICS.values() if m.better == LOWER)
    return [sorted(rows, key=lambda row: row.value, reverse=not lower) for _, rows in sorted(sets.items())]


def _models(client: MlflowClient, experiment_id: str) -> Iterator[LoggedModel]:
    token = None
    while True:
        page = client.search_logged_models([experiment_id], max_results=_PAGE, page_token=token)
        yield from (model for model in page if KEY_TAG in model.tags)
        token = page.token
        if not token:
            return


def _scores(model: LoggedModel) -> Iterator[Ranked]:
    """The last value of each score on each set."""
    last: dict[tuple[str, str], Any] = {}
    for metric in model.metrics or ():
        place = (metric.key, metric.dataset_digest or "")
        if place not in last or metric.timestamp >= last[place].timestamp:
            last[place] = metric
    tags = model.tags
    for (name, digest), metric in last.items():
        parts = parse_name(name)
        if parts is not None and parts.stage == EVAL:
            yield Ranked(
                name,
                metric.value,
                digest,
                tags["training_run"],
                int(tags["checkpoint_step"]),
                tags["checkpoint"],
                model.model_id,
            )
