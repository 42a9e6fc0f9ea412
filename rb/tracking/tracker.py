"""``Tracker``: what a training run calls. Every event goes to the journal at once; MLflow follows in the background.

Where the disk takes no more, rows wait in memory (``PatientJournal``); no call raises ``OSError`` once the tracker is made.

Only rank 0 is ``enabled``; on the others every call does nothing, so that the caller needs no rank condition.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rb.core.locks import FileLock
from rb.core.run_layout import RUN_JOURNAL, TRACKING_LOCK
from rb.tracking.bad_steps import BadStep
from rb.tracking.client_tags import client_tags
from rb.tracking.identity import run_identity
from rb.tracking.journal import STATUSES, PatientJournal
from rb.tracking.mlflow_copy import HURRIED_S, MlflowCopy

END_WAIT_S = 30.0  # longest wait for MLflow at the end of a run that finished


class Tracker:
    """The tracking of one training run, from the start (or resume) of its process to ``finish``.

    As a context manager it finishes itself: FINISHED, FAILED after an exception, KILLED after an interrupt or exit.

    Args:
        run_dir: the run folder; journal, ``mlflow.json`` and the lock live there. The default store is ``mlflow.db`` beside it.
        enabled: whether this process tracks (rank 0).
        experiment: MLflow's experiment; that of the first start stays.
        run_name: MLflow's name of the run; the folder's name where not given.
        mlflow: false keeps the journal only (``rb track sync`` can copy it later).
        interval_s: seconds between two copies.
    """

    def __init__(
        self,
        run_dir: str | Path,
        enabled: bool = True,
        experiment: str = "regionblip",
        run_name: str | None = None,
        mlflow: bool = True,
        interval_s: float = 5.0,
    ) -> None:
        self.run_dir = Path(run_dir).resolve()
        self._journal: PatientJournal | None = None
        self._copy: MlflowCopy | None = None
        self._lock = FileLock(self.run_dir / TRACKING_LOCK)
        if not enabled:
            return
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._hold()
        run_identity(self.run_dir, experiment, run_name or self.run_dir.name)
        self._journal = PatientJournal(self.run_dir / RUN_JOURNAL)
        self._journal.write("status", status="RUNNING")
        self._journal.write("tags", values=client_tags())
        if mlflow:
            self._copy = MlflowCopy(self.run_dir, interval_s=interval_s, lock=self._lock)

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters; nested ones get dotted names."""
        if self._journal and values:
            self._write("params", values=flatten(values))

    def tags(self, values: Mapping[str, object]) -> None:
        """Set tags, e.g. ``git_commit``, ``trainable_parameters.image_region``; a later value replaces an earlier one."""
        if self._journal and values:
            self._write("tags", values={name: str(value) for name, value in values.items()})

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of one step, by full name (``train/image_region/loss_itc``). Takes well under a millisecond."""
        if self._journal and values:
            self._hold()
            self._journal.metrics(step, values)

    def bad_step(self, bad: BadStep) -> None:
        """Record a step that was skipped, with the samples of every rank."""
        if self._journal:
            self._write("bad_step", **bad.row())

    def artifact(self, path: str | Path) -> None:
        """Have a file copied to MLflow, into the folder that it has in the run folder; relative paths are relative to that."""
        if self._journal:
            path = Path(path)
            if path.is_absolute() or not (self.run_dir / path).exists():
                path = path.resolve()
                home = self.run_dir.resolve()
                path = path.relative_to(home) if path.is_relative_to(home) else path
            self._write("artifact", path=str(path))

    def inputs(self, datasets: Iterable[tuple[str, str, str]], context: str = "training") -> None:
        """Log the data sets of the run as (name, digest, source); ``context`` says what for: training, validation."""
        if self._journal:
            for name, digest, source in datasets:
                self._write("input", name=str(name), digest=str(digest), source=str(source), context=context)

    def resumed(self, step: int) -> None:
        """Record that the run continues from ``step``: metrics of later steps are superseded."""
        if self._journal:
            self._hold()
            self._journal.truncate_after(step)

    def sync(self) -> None:
        """Wait until the journal is on the disk: before a checkpoint claims its steps."""
        if self._journal:
            self._journal.sync()

    def finish(
        self, status: str = "FINISHED", timeout_s: float = END_WAIT_S, hurry: Callable[[], bool] = lambda: False
    ) -> None:
        """Set the run's end (FINISHED, FAILED or KILLED) and give MLflow some time to follow; later calls do nothing.

        Args:
            timeout_s: longest wait for MLflow, HURRIED_S where the run did not finish. What it lacks then is for ``rb track sync``.
            hurry: asked while waiting: somebody wants this process to end.
        """
        if status not in STATUSES:
            raise ValueError(f"status: {status!r} is not one of {', '.join(STATUSES)}")
        if self._journal is None:
            return
        self._journal.write("status", status=status)
        self._journal.close()
        self._journal = None
        if self._copy:
            self._copy.close(timeout_s if status == "FINISHED" else min(timeout_s, HURRIED_S), hurry)
        else:
            self._lock.release()

    def mlflow_run_id(self, timeout_s: float = 30.0) -> str:
        """MLflow's run id, waiting for the store to be reached; empty if it was not, or where MLflow is off. For logs and tests."""
        end = time.monotonic() + timeout_s
        while self._copy and not self._copy.run_id and time.monotonic() < end:
            time.sleep(0.05)
        return self._copy.run_id if self._copy else ""

    def _write(self, kind: str, **fields: object) -> None:
        assert self._journal is not None
        self._hold()
        self._journal.write(kind, **fields)

    def _hold(self) -> None:
        """Take the folder's tracking lock, if a command that looked at the run for a moment had it before."""
        with contextlib.suppress(OSError):
            self._lock.acquire()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.finish("KILLED" if issubclass(kind, (KeyboardInterrupt, SystemExit)) else "FAILED")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings and lists of mappings as dotted names: {"a": {"b": [{"c": 1}]}} -> {"a.b.0.c": "1"}."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
            value = {str(i): item for i, item in enumerate(value)}
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{key}."))
        elif isinstance(value, (list, tuple)):
            flat[key] = json.dumps(value, default=str)
        else:
            flat[key] = str(value)
    return flat
