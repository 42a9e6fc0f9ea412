"""What all ranks must agree on: the outcome of rank 0's file work, and whether to stop.

A rank that fails or stops alone leaves the others waiting in a collective until its timeout. Used by the entry and the loop.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

import torch

from rb.core import dist

T = TypeVar("T")
PARENT_VARIABLE = "RB_PARENT_PID"  # set by `rb train`: the process whose end is a request to stop


class FailedOnMainError(Exception):
    """Rank 0 failed and says why; this rank only has to leave."""


def on_main(work: Callable[[], T]) -> T:
    """Do `work` on rank 0 and return its (small) result on every rank. Collective.

    Raises:
        ValueError, OSError: on rank 0, what `work` raised.
        FailedOnMainError: then, on every other rank.
    """
    result: T | None = None
    error: ValueError | OSError | None = None
    if dist.is_main():
        try:
            result = work()
        except (ValueError, OSError) as raised:
            error = raised
    failed, result = dist.broadcast_object((error is not None, result))
    if error is not None:
        raise error
    if failed:
        raise FailedOnMainError
    return result  # type: ignore[return-value]


class StopRequest:
    """SIGTERM and SIGINT as a wish that is granted between two steps. Make it first thing in the process."""

    def __init__(self) -> None:
        self.reason = ""
        parent = os.environ.get(PARENT_VARIABLE, "")
        self._parent = int(parent) if parent.isdigit() else 0
        self._launcher = os.getppid()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        # A launcher may send several; one wish is enough, and none of them may cut a checkpoint short.
        self.reason = signal.Signals(number).name

    def agreed(self, device: torch.device) -> bool:
        """Whether any rank was asked to stop: the same answer on all ranks. Collective."""
        if not self.reason and (os.getppid() != self._launcher or (self._parent and not _alive(self._parent))):
            self.reason = "the end of its launcher"
        return bool(dist.all_reduce_max(torch.tensor(bool(self.reason), dtype=torch.int32, device=device)).item())


def _alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
