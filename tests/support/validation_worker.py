"""One rank of tests/training/test_validation.py: three small runs in one process. Started as RANK/WORLD_SIZE processes.

usage: validation_worker.py RUN_FILE HELD_OUT    (HELD_OUT: folder of the regions that the run validates on)
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rb.checkpoints import checkpoint
from rb.core import dist
from rb.core.config import RunConfig
from rb.core.exit_codes import leave
from rb.core.run_file import load_run
from rb.core.stopping import StopRequest
from rb.training.loop import FINISHED, STOPPED, finish, prepare, start_tracking, take_steps
from rb.training.run_folder import saved_run
from rb.training.validate import Validation

ON = ("validation.every=3",)


class StopAfter(StopRequest):
    """A stop request that comes when it was looked at so often: the loop looks before the first step, after each, and before a batch of validation."""

    def __init__(self, looks: int) -> None:
        self.left = looks + 1
        super().__init__()

    @property
    def reason(self) -> str:  # type: ignore[override]
        if threading.current_thread() is threading.main_thread():
            self.left -= 1
        return "the test" if self.left <= 0 else ""

    @reason.setter
    def reason(self, value: str) -> None:
        """Nobody else asks."""


class StopInValidation(StopAfter):
    """A stop request that comes in the validation of one step."""

    def __init__(self, step: int) -> None:
        super().__init__(sys.maxsize)
        validate = Validation.run

        def run(validation: Validation, done: int, to_stop: Callable[[], bool]) -> object:
            self.left = 0 if done == step else self.left
            return validate(validation, done, to_stop)

        Validation.run = run  # type: ignore[assignment,method-assign]


def train(config: RunConfig, resume: Path | None, stop: StopRequest) -> int:
    """As rb/train.py does."""
    run = prepare(config, resume)
    with start_tracking(run, resumed=resume is not None) as tracker:
        code = take_steps(run, tracker, stop)
        finish(run, tracker, code, stop)
    return code


def main(run_file: Path, held_out: Path) -> None:
    dist.init()
    assert train(load_run(run_file, ["name=plain"]), None, StopRequest()) == FINISHED
    validated = load_run(run_file, ["name=validated", *ON])
    assert train(validated, None, StopRequest()) == FINISHED

    # The held-out images cannot be read: the run ends in its first validation, after its first checkpoint.
    shards = {path: path.read_bytes() for path in sorted(held_out.glob("*.tar"))}
    dist.barrier()
    for path, content in shards.items():
        path.write_bytes(bytes(len(content)))
    dist.barrier()
    with pytest.raises(ValueError, match="altered"):
        train(load_run(run_file, ["name=broken", *ON]), None, StopRequest())
    broken = Path(validated.output_dir) / "broken"
    assert checkpoint.require(broken).step == 2
    dist.barrier()
    for path, content in shards.items():
        path.write_bytes(content)
    dist.barrier()
    # It goes on, and is asked to stop before a batch of losses, before one of captions of the same validation, and in its last validation.
    for stop, step in ((StopAfter(2), 3), (StopAfter(2), 3), (StopInValidation(8), 8)):
        assert train(saved_run(broken, []), broken, stop) == STOPPED
        found = checkpoint.require(broken)
        assert (found.step, found.meta["validation_owed"]) == (step, True)
    assert train(saved_run(broken, []), broken, StopRequest()) == FINISHED
    assert not checkpoint.require(broken).meta["validation_owed"]
    dist.shutdown()
    leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
