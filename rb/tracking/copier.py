"""``JournalCopier``: one pass over a run's journal into its MLflow run; raises if MLflow cannot be reached. ``mlflow_copy.py`` repeats it.

How far the copy has come is a tag of the MLflow run itself (the byte offset in the journal), set with every piece. A process killed between
a piece and its tag sends that piece again, with the journal's own time stamps; MLflow's stores keep a point of equal name, step, time and
value once.
"""

from __future__ import annotations

import logging
from array import array
from bisect import bisect_left
from collections.abc import Callable
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rb.core.metric_names import EVAL, parse_name
from rb.core.run_layout import RUN_JOURNAL
from rb.tracking.errors import TrackingError
from rb.tracking.identity import KEY, RUN_ID, identity_in, parent_folder
from rb.tracking.journal import read_rows
from rb.tracking.mlflow_store import (
    NOT_MLFLOW,
    OFFSET_TAG,
    USER_TAG,
    clean_name,
    clean_value,
    open_client,
    open_run,
    tracking_uri,
)
from rb.tracking.models import model_of

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

CHUNK_POINTS = 900  # MLflow takes 1,000 metrics, and 1,000 entities in all, per call
CHUNK_VALUES = 90  # and 100 params or tags
MLFLOW_TAGS = "mlflow."  # what MLflow's own clients set: user, source
# Identities are tags in the journal and parameters in MLflow: they say what went in, and as tags they hide the others.
_IDENTITIES = ("foundation.", "config_digest", "set_sha256")
_REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE")

_NO_RIGHT = {"UNAUTHENTICATED": 401, "CUSTOMER_UNAUTHORIZED": 401, "PERMISSION_DENIED": 403}  # answers of HTTP

_log = logging.getLogger(__name__)


class _Sent:
    """Which points MLflow has. Steps trained again after a resume give the same points, which must not appear twice.

    Scores may be computed again and then differ: of names under ``eval/`` the last value counts, and a changed one is sent again.
    8 bytes a point.
    """

    def __init__(self) -> None:
        self._steps: dict[str, array[int]] = {}
        self._scores: dict[tuple[str, int], float] = {}

    def add(self, name: str, step: int, value: float) -> bool:
        """Note the point; whether it has to be sent."""
        parts = parse_name(name)
        if parts is not None and parts.stage == EVAL:
            known = self._scores.get((name, step))
            self._scores[name, step] = value
            return known is None or not (known == value or (known != known and value != value))
        steps = self._steps.setdefault(name, array("q"))
        place = bisect_left(steps, step)
        if place < len(steps) and steps[place] == step:
            return False
        steps.insert(place, step)
        return True


class JournalCopier:
    """Copies a run folder's journal into its one MLflow run, from where the copy stands. Not thread-safe."""

    def __init__(self, run_dir: str | Path, root: str | Path | None = None) -> None:
        self.run_dir = Path(run_dir).resolve()
        self.root = Path(root or self.run_dir.parent).resolve()
        self.uri = tracking_uri(self.root)
        self.run_id = ""
        self.offset = 0
        self.points = 0
        """Points sent by this object."""
        self._client: MlflowClient | None = None
        self._sent = _Sent()
        self._params: dict[str, str] = {}
        self._experiment_id = ""
        self._scored: dict[str, dict[str, Any]] = {}  # the last rows "model" and "input" before what is copied now

    @property
    def journal(self) -> Path:
        """The journal it reads."""
        return self.run_dir / RUN_JOURNAL

    def behind(self) -> int:
        """Bytes of the journal not copied yet."""
        return max(0, self.journal.stat().st_size - self.offset) if self.journal.exists() else 0

    def pump(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Copy all that the journal holds now; ``stop`` is asked between two pieces, and the next call goes on from there.

        Raises:
            TrackingError: MLflow refuses the run itself (no right to write it, deleted there), or knows more of the journal than there is.
            Exception: those of ``retry_errors()``, when the store cannot be reached; call again later.
        """
        try:
            self._pump(stop)
        except BaseException as error:
            self._client = None  # the next call starts over from what MLflow says
            if _code(error) in _NO_RIGHT:
                raise TrackingError(
                    f"MLflow at {self.uri} refuses this user (answer {_NO_RIGHT[_code(error)]}); let MLFLOW_TRACKING_USERNAME and "
                    "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, be those of a user who may edit the experiment, "
                    f"then: rb track sync {self.run_dir}"
                ) from error
            if type(error).__module__.startswith("google.protobuf"):  # the answer is JSON, but not MLflow's
                raise OSError(NOT_MLFLOW) from None
            raise

    def _pump(self, stop: Callable[[], bool]) -> None:
        client = self._client
        if client is None or self.behind():
            client = self._connect()
        metrics: list[Metric] = []
        end = self.offset
        for row, end in read_rows(self.journal, self.offset):
            if row["kind"] == "metrics":
                metrics += self._of_checkpoint(client, self._new_points(row))
            else:
                self._send(client, metrics, self.offset)
                metrics = []
                self._note_scored(row)
                self._copy_row(client, row)
            if len(metrics) >= CHUNK_POINTS or row["kind"] != "metrics":
                self._send(client, metrics, end)
                metrics = []
                if stop():
                    return
        if end > self.offset:
            self._send(client, metrics, end)

    def _connect(self) -> MlflowClient:
        """Look at the run before each pass: it may have been deleted, or the store replaced by an older copy of itself."""
        client = self._client or open_client(self.uri)
        run = open_run(client, self.uri, self.run_dir, *self._beginning())
        offset = int(run.data.tags.get(OFFSET_TAG, "0"))
        if self._client is None or (run.info.run_id, offset) != (self.run_id, self.offset):
            self.run_id = run.info.run_id
            self._experiment_id = run.info.experiment_id
            self._params = dict(run.data.params)
            self._replay(offset)
        self._client = client
        return client

    def _beginning(self) -> tuple[float | None, dict[str, str]]:
        """When the run began, and MLflow's own tags of that time: from the rows before its first metrics."""
        start: float | None = None
        tags: dict[str, str] = {}
        for row, _ in read_rows(self.journal, on_bad=lambda _: None):
            start = row["time"] if start is None else start
            if row["kind"] == "metrics":
                break
            if row["kind"] == "tags":
                tags |= {k: clean_value(v) for k, v in row["values"].items() if k.startswith(MLFLOW_TAGS)}
        return start, tags

    def _replay(self, offset: int) -> None:
        """Rebuild what was sent from the part of the journal that is already copied."""
        size = self.journal.stat().st_size if self.journal.exists() else 0
        if offset > size:
            raise TrackingError(
                f"{self.journal}: {size} bytes, but {offset} were copied to MLflow run {self.run_id}: the journal was cut or replaced; "
                "remove mlflow.json from the run folder to start a new MLflow run"
            )
        self._sent, self.offset, self._scored = _Sent(), offset, {}
        for row, end in read_rows(self.journal, on_bad=lambda _: None):
            if end > offset:
                break
            if row["kind"] == "metrics":
                self._new_points(row)
            self._note_scored(row)

    def _note_scored(self, row: dict[str, Any]) -> None:
        if row["kind"] == "model" or (row["kind"] == "input" and row.get("context") == "evaluation"):
            self._scored[row["kind"]] = row

    def _of_checkpoint(self, client: MlflowClient, points: list[Metric]) -> list[Metric]:
        """Points of an evaluation, as metrics also of the checkpoint's logged model and of the data set that was scored."""
        from mlflow.entities import Metric

        if not points or "model" not in self._scored:
            return points
        row, data = self._scored["model"], self._scored.get("input")
        training = identity_in(parent_folder(self.run_dir) or self.run_dir, self.uri)
        key = f"{training[KEY]}-{row['step']}"
        model = model_of(client, self._experiment_id, training.get(RUN_ID, self.run_id), key, row)
        if not model:
            return points
        about = {"model_id": model, "run_id": self.run_id}
        if data is not None:
            about |= {"dataset_name": data["name"], "dataset_digest": short_digest(data["digest"])}
        return [Metric(point.key, point.value, point.timestamp, point.step, **about) for point in points]

    def _new_points(self, row: dict[str, Any]) -> list[Metric]:
        from mlflow.entities import Metric

        stamp, step = int(row["time"] * 1000), row["step"]
        named = [(clean_name(name), value) for name, value in row["values"].items()]
        return [Metric(name, value, stamp, step) for name, value in named if self._sent.add(name, step, value)]

    def _send(self, client: MlflowClient, metrics: list[Metric], end: int) -> None:
        """Send points and then note ``end``."""
        for start in range(0, len(metrics), CHUNK_POINTS):
            self._log(client, metrics[start : start + CHUNK_POINTS])
        if end > self.offset:
            self._note(client, end)
        self.points += len(metrics)
        self.offset = end

    def _note(self, client: MlflowClient, end: int) -> None:
        """Note on the run how far the copy has come. ``TrackingError`` where it takes not even that."""
        from mlflow.entities import RunTag

        try:
            client.log_batch(self.run_id, tags=[RunTag(OFFSET_TAG, str(end))])
        except retry_errors() as error:
            if _is_refusal(error):
                raise TrackingError(
                    f"MLflow run {self.run_id} in {self.uri} takes nothing any more: {error}"
                ) from error
            raise

    def _log(self, client: MlflowClient, metrics: list[Metric]) -> None:
        """One call for all; if MLflow refuses something in it, one call per name, so that only the culprit is lost."""
        try:
            client.log_batch(self.run_id, metrics=metrics)
        except retry_errors() as error:
            if not _is_refusal(error):
                raise
            self._note(client, self.offset)  # the run takes anything at all
            for name in dict.fromkeys(metric.key for metric in metrics):
                try:
                    client.log_batch(self.run_id, metrics=[metric for metric in metrics if metric.key == name])
                except retry_errors() as culprit:
                    if not _is_refusal(culprit):
                        raise
                    _log.warning("MLflow refuses metric %s (it stays in %s): %s", name, self.journal, culprit)

    def _copy_row(self, client: MlflowClient, row: dict[str, Any]) -> None:
        """One row that is not metrics."""
        try:
            if row["kind"] == "params":
                self._copy_params(client, row["values"])
            elif row["kind"] == "tags":
                self._copy_tags(client, row["values"])
            elif row["kind"] == "input":
                self._copy_input(client, row)
            elif row["kind"] == "artifact":
                self._copy_artifact(client, row["path"])
            elif row["kind"] == "status" and row["status"] == "RUNNING":
                client.update_run(self.run_id, status="RUNNING")
            elif row["kind"] == "status":
                client.set_terminated(self.run_id, status=row["status"], end_time=int(row["time"] * 1000))
        except KeyError as error:
            _log.warning("%s: a row of kind %s lacks %s and is not copied", self.journal, row["kind"], error)
        except retry_errors() as error:
            if not _is_refusal(error):
                raise
            self._note(client, self.offset)
            _log.warning("MLflow refuses a row of kind %s (it stays in %s): %s", row["kind"], self.journal, error)

    def _copy_params(self, client: MlflowClient, values: dict[str, str]) -> None:
        """New parameters as such; MLflow cannot change one, so what differs after a resume becomes a tag ``param_changed.NAME``."""
        from mlflow.entities import Param

        cleaned = {clean_name(name): clean_value(value) for name, value in values.items()}
        new = [Param(name, value) for name, value in cleaned.items() if name not in self._params]
        changed = {f"param_changed.{name}": v for name, v in cleaned.items() if self._params.get(name, v) != v}
        for start in range(0, len(new), CHUNK_VALUES):
            client.log_batch(self.run_id, params=new[start : start + CHUNK_VALUES])
        self._params.update({param.key: param.value for param in new})
        self._set_tags(client, changed)

    def _copy_tags(self, client: MlflowClient, values: dict[str, str]) -> None:
        """Tags as such, but identities as parameters; the user is set when the run is made, and MLflow does not let it change."""
        identities = {name: value for name, value in values.items() if name.startswith(_IDENTITIES)}
        if identities:
            self._copy_params(client, identities)
        rest = {name: value for name, value in values.items() if name not in identities and name != USER_TAG}
        self._set_tags(client, {clean_name(name): clean_value(value) for name, value in rest.items()})

    def _set_tags(self, client: MlflowClient, values: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(name, value) for name, value in values.items()]
        for start in range(0, len(tags), CHUNK_VALUES):
            client.log_batch(self.run_id, tags=tags[start : start + CHUNK_VALUES])

    def _copy_input(self, client: MlflowClient, row: dict[str, Any]) -> None:
        """A data set as MLflow's input, the whole digest as the input's tag (its own field holds 36 characters)."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        name, digest, source = row["name"], row["digest"], row["source"]
        data = Dataset(name=name, digest=short_digest(digest), source_type="local", source=source)
        tags = {"mlflow.data.context": row.get("context", "training"), "digest": digest}
        marked = DatasetInput(dataset=data, tags=[InputTag(key, value) for key, value in tags.items()])
        client.log_inputs(self.run_id, [marked])

    def _copy_artifact(self, client: MlflowClient, path: str) -> None:
        local = self.run_dir / path
        folder = Path(path).parent
        if local.exists():
            inside = not Path(path).is_absolute() and folder != Path()
            client.log_artifact(self.run_id, str(local), folder.as_posix() if inside else None)
        else:
            _log.warning("%s is not there any more and is not copied to MLflow", local)


def short_digest(digest: str) -> str:
    """A data set's digest as MLflow holds it."""
    return digest.removeprefix("sha256:")[:36]


def retry_errors() -> tuple[type[Exception], ...]:
    """What an MLflow call raises when its store cannot be reached, refuses, or is not MLflow's at all (imports MLflow)."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, RequestException, SQLAlchemyError, OSError, JSONDecodeError)


def _is_refusal(error: Exception) -> bool:
    """Whether sending the same again would be refused again."""
    return _code(error) in _REFUSED


def _code(error: BaseException) -> str:
    """MLflow's code of an error, empty where it has none."""
    return str(getattr(error, "error_code", ""))
