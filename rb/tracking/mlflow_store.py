"""Where MLflow keeps things and what it accepts: store address, first opening, names, one run per run folder.

Used by ``mlflow_copy.py`` alone. Importing this file does not import MLflow (2.7 s): its functions do.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rb.core.files import write_json
from rb.core.locks import FileLock
from rb.core.run_layout import RUN_MLFLOW

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

OFFSET_TAG = "journal_offset"
KEY_TAG = "run_key"
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

_SQLITE = "sqlite:///"
_NOT_ALLOWED = re.compile(r"[^/\w.\- :]")


class TrackingError(ValueError):
    """MLflow cannot be reached, or refuses what it is sent; the journal still holds everything."""


def tracking_uri(root: str | Path) -> str:
    """``MLFLOW_TRACKING_URI``, else a sqlite file in ``root`` (absolute, so that it does not depend on the working folder)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}{Path(root).resolve() / 'mlflow.db'}"


def clean_name(name: str) -> str:
    """``name`` in the characters that MLflow takes: "refcoco+" becomes "refcocoplus", any other stranger "_"."""
    return _NOT_ALLOWED.sub("_", name.replace("+", "plus"))[:MAX_NAME_CHARS]


def clean_value(value: object) -> str:
    """A parameter's or tag's value as text of at most 500 characters."""
    return str(value)[:MAX_VALUE_CHARS]


def load_mlflow() -> None:
    """Import MLflow under our environment (2.7 s)."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    importlib.import_module("mlflow.tracking")


def open_client(uri: str) -> MlflowClient:
    """A client whose store exists. A sqlite file is opened under a lock: processes that create one together break it for good."""
    load_mlflow()
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it announces every table it makes
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it warns at every retry; we do once
    with _creation_lock(uri):
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    return client


def sqlite_path(uri: str) -> Path | None:
    """The file of a sqlite store, none for any other."""
    return Path(uri[len(_SQLITE) :]) if uri.startswith(_SQLITE) else None


@contextlib.contextmanager
def _creation_lock(uri: str) -> Iterator[None]:
    path = sqlite_path(uri)
    if path is None:
        yield
        return
    with FileLock(path.with_name(path.name + ".lock")):
        yield


def ensure_experiment(client: MlflowClient, uri: str, name: str) -> str:
    """The id of the experiment, made where missing (two jobs may try at once). ``TrackingError`` if it was deleted in MLflow."""
    from mlflow.exceptions import MlflowException

    path = sqlite_path(uri)
    # A sqlite store would put artifacts into ./mlruns of whoever created it first.
    location = (path.parent / "mlartifacts").resolve().as_uri() if path else None
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"MLflow experiment {name!r} is deleted in {uri}; restore it there, or set tracking.experiment"
        )
    return str(experiment.experiment_id)


def run_identity(run_dir: Path, experiment: str = "", run_name: str = "") -> dict[str, str]:
    """What ``mlflow.json`` says (key, experiment, run_name, and once known tracking_uri, run_id, experiment_id); made where missing.

    The random key is written before MLflow is asked for a run, and tagged there: a process killed in between finds its run again.
    """
    path = run_dir / RUN_MLFLOW
    if path.exists():
        try:
            identity = json.loads(path.read_text(encoding="utf-8"))
            return {str(name): str(value) for name, value in identity.items()} | {"key": str(identity["key"])}
        except (ValueError, KeyError, AttributeError) as error:
            raise TrackingError(
                f"{path}: not readable as MLflow's identity of this run ({error!r}); remove it to start a new one"
            ) from error
    identity = {"key": uuid.uuid4().hex, "experiment": experiment or "regionblip", "run_name": run_name or run_dir.name}
    save_identity(run_dir, identity)
    return identity


def save_identity(run_dir: Path, identity: dict[str, str]) -> None:
    """Write ``mlflow.json`` in one step."""
    path = run_dir / RUN_MLFLOW
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, identity)


def open_run(client: MlflowClient, uri: str, run_dir: Path) -> Run:
    """This run folder's one MLflow run in this store: the one it has, or a new one. Its id goes to ``mlflow.json``."""
    from mlflow.exceptions import MlflowException

    identity = run_identity(run_dir)
    if identity.get("tracking_uri") == uri and identity.get("run_id"):
        try:
            return _active(client.get_run(identity["run_id"]), uri)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    experiment_id = ensure_experiment(client, uri, identity["experiment"])
    known = client.search_runs([experiment_id], f"tags.{KEY_TAG} = '{identity['key']}'", max_results=1)
    run = (
        known[0]
        if known
        else client.create_run(experiment_id, run_name=identity["run_name"], tags={KEY_TAG: identity["key"]})
    )
    save_identity(run_dir, {**identity, "tracking_uri": uri, "experiment_id": experiment_id, "run_id": run.info.run_id})
    return _active(run, uri)


def _active(run: Run, uri: str) -> Run:
    if run.info.lifecycle_stage != "active":
        raise TrackingError(
            f"MLflow run {run.info.run_id} is deleted in {uri}; restore it there, or remove {RUN_MLFLOW} from the run folder"
        )
    return run
