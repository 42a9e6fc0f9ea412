"""What all ranks must agree on: the outcome of rank 0's file work, and whether to stop.

A rank that fails or stops alone leaves the others waiting in a collective until its timeout. Used by the entry and the loop.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

import torch

from rb.core import dist
from rb.core.launcher import PARENT_VARIABLE

T = TypeVar("T")


class FailedElsewhereError(Exception):
    """Another rank failed and reports why; this rank only has to exit."""


def together(work: Callable[[], T]) -> T:
    """Do `work` on every rank, and let all fail if one does: no rank waits for one that has left. Collective.

    `work` must hold no collective itself.

    Raises:
        ValueError, OSError: what `work` raised here; on ranks other than 0 only if rank 0 did not fail too.
        FailedElsewhereError: another rank speaks.
    """
    error: ValueError | OSError | None = None
    result: T | None = None
    try:
        result = work()
    except (ValueError, OSError) as raised:
        error = raised
    # One number says whether rank 0 failed (2) or only others did (1).
    mine = 0 if error is None else 2 if dist.is_main() else 1
    worst = int(dist.all_reduce_max(torch.tensor(mine, dtype=torch.int32, device=dist.device())).item())
    if error is not None and mine == worst:
        raise error
    if worst:
        raise FailedElsewhereError
    return result  # type: ignore[return-value]


def on_main(work: Callable[[], T]) -> T:
    """Do `work` on rank 0 only; its (small) result, or its failure, is every rank's. Collective."""
    return dist.broadcast_object(together(work if dist.is_main() else _nothing))


def _nothing() -> Any:
    return None


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
        """Whether any rank was asked to stop: the same result on all ranks. Collective."""
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
