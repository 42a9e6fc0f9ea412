"""What MLflow is asked for: store address, a client, names that it accepts, one MLflow run per run folder.

Used by ``copier.py``. Importing this file does not import MLflow (2.7 s): its functions do.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rb.core.run_layout import RUN_MLFLOW
from rb.tracking.errors import TrackingError
from rb.tracking.identity import (
    COPIED_FROM,
    EXPERIMENT,
    EXPERIMENT_ID,
    FOLDER,
    KEY,
    RUN_ID,
    RUN_NAME,
    TRACKING_URI,
    identity_in,
    parent_folder,
    save_identity,
)
from rb.tracking.sqlite_store import (
    SQLITE,
    artifact_folder,
    cannot_open,
    forget_connections,
    open_errors,
    prepare_store,
    sqlite_path,
)

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

OFFSET_TAG = "journal_offset"
KEY_TAG = "run_key"
USER_TAG = "mlflow.user"  # MLflow's own tags: docs of MLflow, "System Tags"
PARENT_TAG = "mlflow.parentRunId"
EXPERIMENT_KIND = {
    "mlflow.experimentKind": "custom_model_development"
}  # the page of runs and curves, not that of GenAI traces
NOT_MLFLOW = "what answers there is not an MLflow server"
MAX_VALUE_CHARS = 500
MAX_NAME_CHARS = 250

# MLflow's own defaults (7 retries, 120 s each) keep one call to a dead server busy for 246 s.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

_NOT_ALLOWED = re.compile(r"[^/\w.\- :]")
_JOINED = re.compile(r"(?<=\w)\+(?=\w)")


def tracking_uri(root: str | Path) -> str:
    """``MLFLOW_TRACKING_URI``, else a sqlite file in ``root`` (absolute, so that it does not depend on the working folder)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{Path(root).resolve() / 'mlflow.db'}"


def clean_name(name: str) -> str:
    """``name`` in the characters that MLflow takes: "refcoco+" becomes "refcocoplus", "a+b" "a_and_b", any other stranger "_"."""
    return _NOT_ALLOWED.sub("_", _JOINED.sub("_and_", name).replace("+", "plus"))[:MAX_NAME_CHARS]


def clean_value(value: object) -> str:
    """A parameter's or tag's value as text of at most 500 characters."""
    return str(value)[:MAX_VALUE_CHARS]


def load_mlflow() -> None:
    """Import MLflow under our environment (2.7 s)."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    importlib.import_module("mlflow.tracking")


def open_client(uri: str) -> MlflowClient:
    """A client whose store exists.

    Raises:
        TrackingError: a sqlite store that MLflow cannot use; the message has the remedy.
        Exception: MLflow's and ``OSError``, when the store cannot be reached now.
    """
    load_mlflow()
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(
        logging.CRITICAL
    )  # it announces tables, and logs errors that it raises too
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it warns at every retry; we do once
    path = sqlite_path(uri)
    if path is not None:
        prepare_store(path)
    try:
        client = MlflowClient(tracking_uri=uri)
    except open_errors() as error:
        if path is None:
            raise
        forget_connections(path)
        raise cannot_open(path, error) from error
    client.search_experiments(max_results=1)
    return client


def ensure_experiment(client: MlflowClient, uri: str, name: str) -> str:
    """The id of the experiment, made where missing (two jobs may try at once). ``TrackingError`` if it was deleted in MLflow."""
    from mlflow.exceptions import MlflowException

    path = sqlite_path(uri)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        location = artifact_folder(path) if path else None
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=dict(EXPERIMENT_KIND)))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if _is_deleted(experiment.lifecycle_stage):
        raise TrackingError(
            f"MLflow experiment {name!r} is deleted in {uri}; restore it there, or go on with --resume and another tracking.experiment"
        )
    for tag, value in EXPERIMENT_KIND.items():
        if tag not in experiment.tags:
            client.set_experiment_tag(experiment.experiment_id, tag, value)
    return str(experiment.experiment_id)


def open_run(client: MlflowClient, uri: str, run_dir: Path, start_s: float | None, tags: Mapping[str, str]) -> Run:
    """This run folder's one MLflow run in this store: the one it has, or a new one. Its id goes to ``mlflow.json``.

    Args:
        start_s: when the run began, in seconds since 1970; none: now. For a new run, as the next.
        tags: of MLflow's own kind (``mlflow.user``), which it takes when a run is made.
    """
    identity = identity_in(run_dir, uri)
    run = _known_run(client, uri, identity)
    if run is None:
        experiment_id = ensure_experiment(client, uri, identity[EXPERIMENT])
        found = _search(client, experiment_id, identity)
        made = {KEY_TAG: identity[KEY], **tags}
        if COPIED_FROM in identity:
            made[COPIED_FROM] = identity[COPIED_FROM]
        start_ms = None if start_s is None else int(start_s * 1000)
        run = found or client.create_run(experiment_id, start_ms, made, identity[RUN_NAME])
    _check_active(client, uri, run)
    place = {TRACKING_URI: uri, EXPERIMENT_ID: run.info.experiment_id, RUN_ID: run.info.run_id}
    place |= {FOLDER: str(run_dir)}
    if not place.items() <= identity.items():
        save_identity(run_dir, identity | place)
    _join_parent(client, uri, run_dir, run)
    return run


def _known_run(client: MlflowClient, uri: str, identity: Mapping[str, str]) -> Run | None:
    """The run whose id is noted for this store; none if there is none, or not any more."""
    from mlflow.exceptions import MlflowException

    if identity.get(TRACKING_URI) != uri or not identity.get(RUN_ID):
        return None
    try:
        return client.get_run(identity[RUN_ID])
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    return None


def _search(client: MlflowClient, experiment_id: str, identity: Mapping[str, str]) -> Run | None:
    found = client.search_runs([experiment_id], f"tags.{KEY_TAG} = '{identity[KEY]}'", max_results=1)
    return found[0] if found else None


def _join_parent(client: MlflowClient, uri: str, run_dir: Path, run: Run) -> None:
    """Set the training run as parent of an evaluation, once the training run is in the store."""
    folder = parent_folder(run_dir)
    if folder is None:
        return
    identity = identity_in(folder, uri)
    parent = _known_run(client, uri, identity) or _search(client, run.info.experiment_id, identity)
    if parent is not None and run.data.tags.get(PARENT_TAG) != parent.info.run_id:
        client.set_tag(run.info.run_id, PARENT_TAG, parent.info.run_id)
        client.set_tag(run.info.run_id, "training_run_id", parent.info.run_id)


def _check_active(client: MlflowClient, uri: str, run: Run) -> None:
    if not _is_deleted(run.info.lifecycle_stage):
        return
    experiment = client.get_experiment(run.info.experiment_id)
    what = f"run {run.info.run_id}"
    if _is_deleted(experiment.lifecycle_stage):  # its runs are deleted with it, and come back with it
        what = f"experiment {experiment.name!r}"
    raise TrackingError(
        f"MLflow {what} is deleted in {uri}; restore it there, or remove {RUN_MLFLOW} from the run folder to start a new run"
    )


def _is_deleted(stage: str) -> bool:
    """Whether a run's or an experiment's stage is that of a deleted one; ``OSError`` if it is none of MLflow's."""
    if stage not in ("active", "deleted"):
        raise OSError(NOT_MLFLOW)
    return stage == "deleted"
