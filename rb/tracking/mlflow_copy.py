"""``MlflowCopy``: a background thread that keeps MLflow up with a live journal, and never raises or blocks.

Nothing is queued in memory: the thread reads the file, so a long outage of MLflow costs no memory.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rb.core import heartbeat
from rb.core.locks import FileLock
from rb.core.run_layout import TRACKING_LOCK
from rb.tracking.closing import close_dead_runs
from rb.tracking.copier import JournalCopier
from rb.tracking.errors import TrackingError, reason, say_behind
from rb.tracking.mlflow_store import load_mlflow

FIRST_RETRY_S, LONGEST_RETRY_S = 5.0, 120.0
HURRIED_S = 5.0  # longest wait for MLflow at the end of a run that is asked to stop: all of it must be gone in 30 s
AWAY = "it cannot be reached"

_log = logging.getLogger(__name__)


class MlflowCopy:
    """Copies a live journal to MLflow from a daemon thread, every ``interval_s`` seconds; a store that is away costs only a warning."""

    def __init__(
        self,
        run_dir: str | Path,
        root: str | Path | None = None,
        interval_s: float = 5.0,
        lock: FileLock | None = None,
    ) -> None:
        load_mlflow()  # here, before the first step: in the thread it would hold up steps
        self._copier = JournalCopier(run_dir, root)
        self._lock = lock or FileLock(Path(run_dir) / TRACKING_LOCK)
        self._interval_s = interval_s
        self._closing = threading.Event()
        self._complete = False
        self._said = ""  # what is wrong, as it was said; empty while nothing is
        self._thread = threading.Thread(target=self._run, name="mlflow-copy", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str:
        """MLflow's run id; empty until the store was reached."""
        return self._copier.run_id

    def close(self, timeout_s: float = 30.0, hurry: Callable[[], bool] = lambda: False) -> bool:
        """Copy the rest, for at most ``timeout_s``, and end; whether everything was copied. What is missing is logged once.

        Args:
            hurry: asked while waiting; once it is true, the wait is over in HURRIED_S.
        """
        self._closing.set()
        end = time.monotonic() + timeout_s
        while self._thread.is_alive() and time.monotonic() < end:
            if hurry():
                end, hurry = min(end, time.monotonic() + HURRIED_S), lambda: False
            heartbeat.beat()  # this wait has an end: it is no hang
            self._thread.join(min(0.2, max(0.0, end - time.monotonic())))
        if not self._complete:
            say_behind(_log, self._copier.uri, self._copier.run_dir)
        return self._complete

    def _run(self) -> None:
        try:
            self._copy_until_closed()
        finally:
            self._lock.release()

    def _copy_until_closed(self) -> None:
        retry_s = FIRST_RETRY_S
        looked = False
        while True:
            closing = self._closing.is_set()  # read before the pass: the last pass begins after the last row
            try:
                done = self._lock.acquire()
                if done:
                    self._copier.pump()
                    self._back_again()
                    retry_s = FIRST_RETRY_S
                if done and not (looked or closing):
                    close_dead_runs(self._copier.root, self._copier.run_dir, self._closing.is_set)
                    looked = True
                wait_s = self._interval_s
                self._complete = closing and done
            except TrackingError as error:  # a person has to do something; once it is done the copy goes on
                self._say(str(error), "%s. Until then metrics go to the journal only.", error)
                wait_s = LONGEST_RETRY_S
            except Exception as error:  # noqa: BLE001 (whatever a strange server makes MLflow raise: training goes on)
                away = "MLflow at %s cannot be reached; the run continues, its journal keeps everything (%s)"
                self._say(AWAY, away, self._copier.uri, reason(error))
                wait_s, retry_s = retry_s, min(2 * retry_s, LONGEST_RETRY_S)
            if closing:
                return
            self._closing.wait(wait_s)

    def _say(self, what: str, line: str, *values: object) -> None:
        """One line when something goes wrong, and one when it is another thing than before."""
        if what != self._said:
            _log.warning(line, *values)
        self._said = what

    def _back_again(self) -> None:
        if self._said:
            _log.warning("MLflow at %s is back and has everything", self._copier.uri)
        self._said = ""
