"""When a checkpoint is written, beside the steps that follow; and what happens where it cannot be written.

The step that saves waits until the state is copied to rank 0's CPU memory. A thread of rank 0 writes the copy, and every rank learns of the
outcome when all agree at the end of a later step (`report`, `settle`). At most one checkpoint is being written: the next one waits for it, which
loses none and bounds the memory to one copy.

Where it cannot be written, training goes on, and the next step that finds room is saved instead; the last whole checkpoint stays. Before anything is
gathered again, free bytes are looked at. Where they would do and the disk refuses all the same (a quota), the wait between two attempts grows
from one step to `train.checkpoint_every`. A run whose last step cannot be saved ends with the exit code CANNOT_WRITE.
"""

from __future__ import annotations

import logging
from concurrent import futures
from dataclasses import dataclass
from functools import partial
from typing import Any

from rb.checkpoints import checkpoint
from rb.checkpoints.checkpoint import TrainState
from rb.core import heartbeat
from rb.core.config import TrainConfig
from rb.core.exit_codes import WRONG_REQUEST
from rb.core.files import check_room
from rb.core.run_layout import CHECKPOINTS, step_name
from rb.tracking import Tracker
from rb.training.agree import FailedElsewhereError, agreed, on_main
from rb.training.engine import Engine
from rb.training.run_folder import RunFolder
from rb.training.validate import Best, Validation

LOOK_EVERY = 10  # steps between two looks at a disk that is full
NO_NEWS, WRITTEN, NOT_WRITTEN, RUN_ENDS = range(4)  # of the checkpoint that is being written; what rank 0 reports

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Writing:
    """A checkpoint that is being written. Every rank has the object."""

    step: int
    best: bool
    """Whether validation found this step the best so far."""
    score: Best | None
    """The best score at this step."""
    work: futures.Future[None] | None
    """On rank 0."""


class Saver:
    """Writes the checkpoints of one run. Every rank has the object, and makes the same calls.

    As a context manager it waits at the end for a checkpoint that is being written, also where a step has failed.

    Args:
        folder: the claimed run folder.
        engine: gathers the state.
        validation: knows the best score so far.
        meta: what else a checkpoint records.
        train: how often, and how many stay.

    Attributes:
        missed: why the newest attempt failed; empty where it did not. Its words are on rank 0 only.
    """

    def __init__(
        self, folder: RunFolder, engine: Engine, validation: Validation, meta: dict[str, Any], train: TrainConfig
    ) -> None:
        self.missed = ""
        self._folder, self._engine, self._validation, self._meta = folder, engine, validation, meta
        self._every, self._keep = train.checkpoint_every, train.keep_checkpoints
        self._wait = self._retry_at = self._needed = 0
        self._best_saved = validation.best
        self._thread = futures.ThreadPoolExecutor(1, "saving")  # starts with the first checkpoint
        self._writing: _Writing | None = None

    def due(self, done: int) -> bool:
        """Whether to save after so many steps: by the run's rule, or because an earlier attempt failed."""
        again = bool(self.missed) and self._writing is None and done >= self._retry_at
        return done % self._every == 0 or again

    def save(self, done: int, best: bool, tracker: Tracker) -> bool:
        """Begin to write a checkpoint of the step just made; whether it was begun. Collective.

        Args:
            done: optimizer steps made.
            best: validation found this step the best so far.
            tracker: whose rows of these steps must be on the disk before.

        Raises:
            ValueError, FailedElsewhereError: as `settle`, for an earlier checkpoint.
        """
        with heartbeat.during(heartbeat.SAVING):
            self.wait()
            if self.missed and not on_main(self._has_room):
                self._put_off(done, best, LOOK_EVERY)
                return False
            state = self._engine.gather_state()
        meta = self._meta | self._validation.record()
        work = None if state is None else self._thread.submit(self._write, state, meta, done, best, tracker)
        self._writing = _Writing(done, best, self._validation.best, work)
        return True

    def amend(self, step: int, best: bool) -> None:
        """Note in the checkpoint of a step what validation has found of it since. Collective; raises as `checkpoint.amend`."""
        on_main(partial(checkpoint.amend, self._folder.path, step, self._validation.record(), self._keep, best))
        self._best_saved = self._validation.best

    def wait(self) -> bool:
        """Wait for the checkpoint that is being written, if there is one; whether the newest attempt was successful. Collective.

        Raises:
            ValueError, FailedElsewhereError: as `settle`.
        """
        if self._writing is not None:
            with heartbeat.during(heartbeat.SAVING):
                self._join()
                (report,) = agreed(self.report())
            self.settle(report)
        return not self.missed

    def report(self) -> int:
        """This rank's word on the checkpoint that is being written, for `agreed`: one of NO_NEWS, WRITTEN, NOT_WRITTEN, RUN_ENDS."""
        work = self._writing.work if self._writing else None
        if work is None or not work.done():
            return NO_NEWS
        error = work.exception()
        if error is None:
            return WRITTEN
        if isinstance(error, OSError):
            return NOT_WRITTEN
        if isinstance(error, ValueError):
            return RUN_ENDS
        raise error

    def settle(self, report: int) -> None:
        """Take note of what rank 0 has reported. Every rank.

        Raises:
            ValueError: on rank 0, for RUN_ENDS: the run folder is gone.
            FailedElsewhereError: on the others.
        """
        if report == NO_NEWS:
            return
        assert self._writing is not None
        writing, self._writing = self._writing, None
        error = writing.work.exception() if writing.work else None
        if report == WRITTEN:
            self._say_saved(writing.step)
            self.missed, self._wait, self._best_saved = "", 0, writing.score
            return
        if report == RUN_ENDS:
            raise error or FailedElsewhereError(WRONG_REQUEST)
        if not self.missed:
            log.error(
                "step %d is not saved: %s; earlier checkpoints are intact, training goes on and saves when there is room",
                *(writing.step, error),
            )
        self.missed = str(error or "rank 0 could not write it")
        self._wait = min(max(1, 2 * self._wait), self._every)
        self._put_off(writing.step, writing.best and self._validation.best == writing.score, self._wait)

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *_: object) -> None:
        with heartbeat.during(heartbeat.SAVING):
            self._join()
        self._thread.shutdown()
        if self._writing and self._writing.work:  # a step has failed meanwhile
            error = self._writing.work.exception()
            if error is None:
                self._say_saved(self._writing.step)
            else:
                log.error("step %d is not saved: %s", self._writing.step, error)

    def _say_saved(self, step: int) -> None:
        log.info("step %d: saved %s", step, self._folder.path / CHECKPOINTS / step_name(step))

    def _join(self) -> None:
        """Wait for the thread."""
        if self._writing is not None and self._writing.work is not None:
            futures.wait([self._writing.work])

    def _put_off(self, done: int, best: bool, steps: int) -> None:
        self._retry_at = done + steps
        if best:  # its weights are in no checkpoint, so a later score need not beat it
            self._validation.best = self._best_saved

    def _write(self, state: TrainState, meta: dict[str, Any], done: int, best: bool, tracker: Tracker) -> None:
        """In the thread of rank 0."""
        self._needed = state.num_bytes
        with heartbeat.writing():
            tracker.sync()
            self._folder.check_there()
            checkpoint.save(self._folder.path, done, state, meta, self._keep, best)

    def _has_room(self) -> bool:
        try:
            check_room(self._folder.path, self._needed)
        except OSError:
            return False
        return True
