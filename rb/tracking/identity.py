"""``mlflow.json``: which MLflow run a run folder belongs to. Knows nothing of MLflow itself.

    key            random, written before MLflow is asked for a run and tagged there: a process killed in between finds its run again
    experiment, run_name
    folder         the run folder's path when this was written
    tracking_uri, experiment_id, run_id     once MLflow was reached
    copied_from    run id of the run whose folder this one is a copy of

The rule of copies: a folder whose recorded path is another folder that is still there with the same key is a copy, and gets a run for itself
when it first meets the store that the original is in. Where the recorded path is gone the folder was moved, and keeps its run. A copy that meets
another store (the whole folder of runs was copied, its ``mlflow.db`` too) finds its run there by the key.
"""

from __future__ import annotations

import uuid
from pathlib import Path

from rb.core.files import write_json
from rb.core.run_layout import RUN_EVALUATIONS, RUN_MLFLOW
from rb.core.strict_json import read
from rb.tracking.errors import TrackingError

KEY, EXPERIMENT, RUN_NAME, FOLDER = "key", "experiment", "run_name", "folder"
TRACKING_URI, EXPERIMENT_ID, RUN_ID, COPIED_FROM = "tracking_uri", "experiment_id", "run_id", "copied_from"


def run_identity(run_dir: Path, experiment: str = "", run_name: str = "") -> dict[str, str]:
    """What ``mlflow.json`` says; made where missing. Another ``experiment`` counts as long as MLflow has no run yet.

    Raises:
        TrackingError: it is damaged.
    """
    path = run_dir / RUN_MLFLOW
    if path.exists():
        try:
            identity = read(path)
            found = {str(name): str(value) for name, value in identity.items()} | {KEY: str(identity[KEY])}
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise TrackingError(
                f"{path}: not readable as MLflow's identity of this run ({error!r}); remove it to start a new one"
            ) from error
        if experiment and RUN_ID not in found and found.get(EXPERIMENT) != experiment:
            found[EXPERIMENT] = experiment
            save_identity(run_dir, found)
        return found
    identity = _new(run_dir, experiment or "regionblip", run_name or run_dir.name)
    save_identity(run_dir, identity)
    return identity


def save_identity(run_dir: Path, identity: dict[str, str]) -> None:
    """Write ``mlflow.json`` in one step."""
    path = run_dir / RUN_MLFLOW
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, identity)


def identity_in(run_dir: Path, uri: str) -> dict[str, str]:
    """The identity that ``run_dir`` has in the store ``uri``, by the rule of copies; a copy's new one is written."""
    identity = run_identity(run_dir)
    same_store = identity.get(TRACKING_URI, uri) == uri
    if same_store and _is_copy(run_dir, identity):
        original, name = Path(identity[FOLDER]), identity[RUN_NAME]
        copy = _new(run_dir, identity[EXPERIMENT], run_dir.name if name == original.name else name)
        identity = copy | {COPIED_FROM: identity.get(RUN_ID, str(original))}
        save_identity(run_dir, identity)
    return identity


def parent_folder(run_dir: Path) -> Path | None:
    """The training run's folder that the folder of an evaluation job lies in; none for any other folder."""
    if run_dir.parent.name != RUN_EVALUATIONS or not (run_dir.parents[1] / RUN_MLFLOW).is_file():
        return None
    return run_dir.parents[1]


def _new(run_dir: Path, experiment: str, run_name: str) -> dict[str, str]:
    return {KEY: uuid.uuid4().hex, EXPERIMENT: experiment, RUN_NAME: run_name, FOLDER: str(run_dir.resolve())}


def _is_copy(run_dir: Path, identity: dict[str, str]) -> bool:
    original = Path(identity.get(FOLDER) or run_dir) / RUN_MLFLOW
    try:
        if original.samefile(run_dir / RUN_MLFLOW):  # one folder under two paths
            return False
        return bool(read(original)[KEY] == identity[KEY])
    except (OSError, ValueError, KeyError, TypeError):
        return False
