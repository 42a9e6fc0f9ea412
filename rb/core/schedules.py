"""The table of schedules: in which order the modalities take their steps within one epoch (``train.schedule``).

A new schedule is one function here and one row of ``SCHEDULES``; configuration, loop and help ask the table. An order is a pure function of
the counts, the run's seed and the epoch, so that every rank lays out the same one and a resume needs nothing saved. A random one draws
from ``rb.core.seeding.generator("schedule", seed, epoch)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = Sequence[int]  # steps of each modality in this epoch, in the order of the run's modalities
Order = NDArray[np.uint8]  # [sum(counts)], the number of the modality of each step; number i comes counts[i] times


@dataclass(frozen=True)
class Turn:
    """One optimizer step: the modality it trains, how many steps that modality made before, and the epoch."""

    modality: str
    modality_step: int
    epoch: int


def weighted_round_robin(counts: Counts, seed: int, epoch: int) -> Order:  # noqa: ARG001 (draws nothing)
    """Turns in proportion to the counts, every prefix as even as can be: uint8 [sum(counts)] of modality numbers.

    Tijdeman's chairman assignment (R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32, 1980): at turn
    t, of those whose share `n * t / T` is at least 1 / (2k - 2) ahead of their turns so far, the one whose deadline is nearest
    gets the turn. Then every modality has, after every t turns, less than one turn more or less than its share, for any
    number k of modalities. Integers only: the same everywhere.
    """
    present = [index for index, count in enumerate(counts) if count > 0]
    total = sum(counts)
    if len(present) < 2:
        return np.full(total, present[0] if present else 0, dtype=np.uint8)
    slack = 2 * len(present) - 2
    served = [0] * len(counts)
    order = np.empty(total, dtype=np.uint8)
    for turn in range(1, total + 1):
        chosen, chosen_due = -1, 0
        for index in present:
            count = counts[index]
            if (count * turn - served[index] * total) * slack < total:
                continue
            # The deadline of the next turn of `index` is ((served + 1) * slack - 1) / (count * slack) of the epoch.
            due = (served[index] + 1) * slack - 1
            if chosen < 0 or due * counts[chosen] < chosen_due * count:
                chosen, chosen_due = index, due
        assert chosen >= 0, "chairman assignment: no modality is due"
        served[chosen] += 1
        order[turn - 1] = chosen
    return order


def round_robin(counts: Counts, seed: int, epoch: int) -> Order:  # noqa: ARG001 (draws nothing)
    """Strict turns 0, 1, 2, 0, 1, 2, ... leaving out those whose count is used up: uint8 [sum(counts)]."""
    numbers = np.concatenate([np.full(count, index, dtype=np.uint8) for index, count in enumerate(counts)])
    rounds = np.concatenate([np.arange(count) for count in counts])
    return numbers[np.lexsort((numbers, rounds))]


def sequential(counts: Counts, seed: int, epoch: int) -> Order:  # noqa: ARG001 (draws nothing)
    """All turns of one modality, then all of the next: uint8 [sum(counts)]."""
    return np.repeat(np.arange(len(counts), dtype=np.uint8), counts)


SCHEDULES: dict[str, Callable[[Counts, int, int], Order]] = {
    "weighted_round_robin": weighted_round_robin,
    "round_robin": round_robin,
    "sequential": sequential,
}
