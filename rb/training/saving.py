"""When a checkpoint is written, and what happens where it cannot be: training goes on, and the next step that finds room is saved instead.

The last whole checkpoint stays. Before anything is gathered, free bytes are looked at. Where they would do and the disk refuses all the same
(a quota), the wait between two attempts grows from one step to `train.checkpoint_every`. A run whose last step cannot be saved ends with the exit code CANNOT_WRITE.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from rb.checkpoints import checkpoint
from rb.checkpoints.checkpoint import TrainState
from rb.core.config import TrainConfig
from rb.core.files import check_room
from rb.tracking import Tracker
from rb.training.agree import on_main
from rb.training.engine import Engine
from rb.training.run_folder import RunFolder
from rb.training.validate import Validation

LOOK_EVERY = 10  # steps between two looks at a disk that is full

log = logging.getLogger(__name__)


class Saver:
    """Writes the checkpoints of one run. Every rank has the object, and makes the same calls.

    Args:
        folder: the claimed run folder.
        engine: gathers the state.
        validation: knows the best score so far.
        meta: what else a checkpoint records.
        train: how often, and how many stay.

    Attributes:
        missed: why the newest attempt failed; empty where it did not.
    """

    def __init__(
        self, folder: RunFolder, engine: Engine, validation: Validation, meta: dict[str, Any], train: TrainConfig
    ) -> None:
        self.missed = ""
        self._folder, self._engine, self._validation, self._meta = folder, engine, validation, meta
        self._every, self._keep = train.checkpoint_every, train.keep_checkpoints
        self._wait = self._retry_at = self._needed = 0
        self._best_saved = validation.best

    def due(self, done: int) -> bool:
        """Whether to save after so many steps: by the run's rule, or because an earlier attempt failed."""
        return done % self._every == 0 or (bool(self.missed) and done >= self._retry_at)

    def save(self, done: int, best: bool, tracker: Tracker) -> bool:
        """Write a checkpoint of the step just made; whether it was written. Collective.

        Args:
            done: optimizer steps made.
            best: validation found this step the best so far.
            tracker: whose rows of these steps must be on the disk before.

        Raises:
            ValueError: the run folder is gone.
        """
        if self.missed and not on_main(self._has_room):
            return self._put_off(done, best, LOOK_EVERY)
        tracker.sync()
        state = self._engine.gather_state()
        before, self.missed = self.missed, on_main(partial(self._write, state, done, best))
        if self.missed:
            if not before:
                log.error(
                    "step %d is not saved: %s; earlier checkpoints are intact, training goes on and saves when there is room",
                    *(done, self.missed),
                )
            self._wait = min(max(1, 2 * self._wait), self._every)
            return self._put_off(done, best, self._wait)
        self._wait, self._best_saved = 0, self._validation.best
        return True

    def _put_off(self, done: int, best: bool, steps: int) -> bool:
        self._retry_at = done + steps
        if best:  # its weights are in no checkpoint, so a later score need not beat it
            self._validation.best = self._best_saved
        return False

    def _write(self, state: TrainState | None, done: int, best: bool) -> str:
        """Why it could not be written; empty where it was."""
        assert state is not None
        self._needed = state.num_bytes
        self._folder.check_there()
        meta = self._meta | {"best": self._validation.record()}
        try:
            path = checkpoint.save(self._folder.path, done, state, meta, self._keep, best)
        except OSError as error:
            return str(error)
        log.info("step %d: saved %s", done, path)
        return ""

    def _has_room(self) -> bool:
        try:
            check_room(self._folder.path, self._needed)
        except OSError:
            return False
        return True
