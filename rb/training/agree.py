"""What all ranks must agree on: the outcome of rank 0's file work, whether to stop.

A rank that fails or stops alone leaves the others waiting in a collective until its timeout. Used by the entry and the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from rb.core import dist, heartbeat
from rb.core.config import RunConfig
from rb.core.exit_codes import code_of

T = TypeVar("T")
_MAIN = 1000  # above all exit codes
_MARGIN_S = 60.0


class FailedElsewhereError(Exception):
    """Another rank failed and reports why; this rank only has to exit, with the same ``code``."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


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
    # One number: the exit code, above all others if rank 0 failed.
    mine = 0 if error is None else code_of(error) + (_MAIN if dist.is_main() else 0)
    worst = int(dist.all_reduce_max(torch.tensor(mine, dtype=torch.int32, device=dist.device())).item())
    if error is not None and mine == worst:
        raise error
    if worst:
        raise FailedElsewhereError(worst % _MAIN)
    return result  # type: ignore[return-value]


def on_main(work: Callable[[], T]) -> T:
    """Do `work` on rank 0 only; its (small) result, or its failure, is every rank's. Collective."""
    return dist.broadcast_object(together(work if dist.is_main() else _nothing))


def _nothing() -> Any:
    return None


def collective_timeout_s(config: RunConfig) -> float:
    """How long a collective of a run may wait.

    Where a supervisor watches (`rb train`, `rb launch`), longer than any of its limits: it can tell which rank is to blame and keeps stacks.
    """
    if not heartbeat.watched():
        return config.train.timeout_s
    return max(config.train.timeout_s, config.limits.longest_s + _MARGIN_S)


def agreed(*numbers: int) -> list[int]:
    """The largest of each number over all ranks, so that all see the same; one collective for all of them."""
    mine = torch.tensor([int(number) for number in numbers], dtype=torch.int32, device=dist.device())
    return [int(number) for number in dist.all_reduce_max(mine).tolist()]
