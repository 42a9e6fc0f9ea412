"""A `Saver` with small parts instead of an engine and a validation: a state whose numbers follow from the step, and a best score to set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rb.checkpoints import checkpoint
from rb.checkpoints.checkpoint import KINDS, UPDATES, TrainState
from rb.core import dist
from rb.core.config import TrainConfig
from rb.tracking import Tracker
from rb.training.run_folder import RunFolder
from rb.training.saving import Saver
from rb.training.validate import Best

VALUES = 10_000  # numbers in each kind of the state


def state_of(step: int) -> TrainState:
    """Every number follows from the step, so that a mixture of two states would show."""
    state = TrainState()
    for place, kind in enumerate(KINDS):
        number = torch.int64 if kind == UPDATES else torch.float32
        state.tensors[kind]["weight"] = torch.full((VALUES,), 10 * step + place, dtype=number)
    return state


def same(one: TrainState, other: TrainState) -> bool:
    """Bit-equal, and of the same names."""
    return all(
        one.tensors[kind].keys() == other.tensors[kind].keys()
        and all(torch.equal(value, other.tensors[kind][name]) for name, value in one.tensors[kind].items())
        for kind in KINDS
    )


class Parts:
    """What a `Saver` asks of the engine and of the validation."""

    def __init__(self) -> None:
        self.best: Best | None = None
        self.gathered = 0
        self.step = 0

    def gather_state(self) -> TrainState | None:
        self.gathered += 1
        return state_of(self.step) if dist.is_main() else None

    def record(self) -> dict[str, Any]:
        return {}


class SmallRun:
    """A claimed run folder, a tracker with its journal there, and a saver; the folder is made if it is not there."""

    def __init__(self, path: Path, every: int = 25, keep: int = 2) -> None:
        self.parts = Parts()
        self.folder = RunFolder(path)
        path.mkdir(exist_ok=True)
        assert not dist.is_main() or self.folder._lock.acquire()
        self.tracker = Tracker(path, dist.is_main(), mlflow=False)
        train = TrainConfig(checkpoint_every=every, keep_checkpoints=keep)
        self.saver = Saver(self.folder, self.parts, self.parts, {"config": {}}, train)  # type: ignore[arg-type]

    def begin(self, step: int, best: bool = False) -> bool:
        """Begin to save the state of a step."""
        self.parts.step = step
        return self.saver.save(step, best, self.tracker)

    def save(self, step: int, best: bool = False) -> bool:
        """Save the state of a step, and wait until it is written."""
        return self.begin(step, best) and self.saver.wait()

    def close(self) -> None:
        """End it as a run ends: what is written becomes whole, another process may come."""
        with self.saver:
            pass
        self.tracker.finish()
        self.folder._lock.release()

    def newest(self) -> int:
        """Step of the newest checkpoint; its state is the one of that step."""
        found = checkpoint.find(self.folder.path)
        assert found is None or same(checkpoint.load_state(found), state_of(found.step))
        return found.step if found else 0
