"""Which modality each optimizer step trains: a pure function of (configuration, step).

Holds the three orders of a semi-hybrid epoch and the arithmetic of epochs. Knows nothing of ranks, workers, data or
models; the loop, the data pipeline and `plan` ask it. Nothing of it is saved but the step.

A modality's data is one endless stream of positions (position p is sample p mod N of the permutation of epoch p div N) and
its k-th step shows the positions [k * G, (k + 1) * G), G being the global batch size. After E epochs it has made
S(E) = ceil(E * N / G) steps, so that every sample was shown at least E times and no batch is ever ragged; epoch e
has S(e + 1) - S(e) steps of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

WEIGHTED_ROUND_ROBIN = "weighted_round_robin"
ROUND_ROBIN = "round_robin"
SEQUENTIAL = "sequential"


@dataclass(frozen=True)
class Turn:
    """One optimizer step: the modality it trains, how many steps that modality made before, and the epoch."""

    modality: str
    modality_step: int
    epoch: int


def weighted_order(counts: list[int]) -> np.ndarray:
    """Turns in proportion to the counts, every prefix as even as can be: uint8 [sum(counts)] of modality numbers.

    Tijdeman's chairman assignment (R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32, 1980): at turn
    t, of those whose share `n * t / T` is at least 1 / (2k - 2) ahead of what they got, the one whose deadline is nearest
    is served. Then every modality has, after every t turns, less than one turn more or less than its share, for any
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
        assert chosen >= 0, "chairman assignment: nobody to serve"
        served[chosen] += 1
        order[turn - 1] = chosen
    return order


def round_robin_order(counts: list[int]) -> np.ndarray:
    """Strict turns 0, 1, 2, 0, 1, 2, ... leaving out those whose count is used up: uint8 [sum(counts)]."""
    numbers = np.concatenate([np.full(count, index, dtype=np.uint8) for index, count in enumerate(counts)])
    rounds = np.concatenate([np.arange(count) for count in counts])
    return numbers[np.lexsort((numbers, rounds))]


def sequential_order(counts: list[int]) -> np.ndarray:
    """All turns of one modality, then all of the next: uint8 [sum(counts)]."""
    return np.repeat(np.arange(len(counts), dtype=np.uint8), counts)


ORDERS: dict[str, Callable[[list[int]], np.ndarray]] = {
    WEIGHTED_ROUND_ROBIN: weighted_order,
    ROUND_ROBIN: round_robin_order,
    SEQUENTIAL: sequential_order,
}


class Schedule:
    """The endless sequence of turns. Modalities take their turns in the order in which they are given.

    Args:
        kind: `weighted_round_robin`, `round_robin` or `sequential`.
        samples_per_epoch: for every modality that trains, how many samples one epoch shows.
        global_batch_size: samples of one optimizer step, over all ranks and accumulation steps.

    Raises ValueError for an unknown kind, no modality, a modality without samples, a batch size below 1.
    """

    def __init__(self, kind: str, samples_per_epoch: Mapping[str, int], global_batch_size: int) -> None:
        if kind not in ORDERS:
            raise ValueError(f"schedule: {kind!r} is unknown, choose one of {', '.join(ORDERS)}")
        if not samples_per_epoch:
            raise ValueError("train_modalities: no modality to train, list at least one")
        for modality, samples in samples_per_epoch.items():
            if samples < 1:
                raise ValueError(f"data of modality {modality!r}: 0 samples; add a manifest for it or do not train it")
        if global_batch_size < 1:
            raise ValueError(f"global_batch_size: {global_batch_size}, must be at least 1")
        self.kind = kind
        self.modalities = tuple(samples_per_epoch)
        self.samples_per_epoch = dict(samples_per_epoch)
        self.global_batch_size = global_batch_size
        # Loops ask step after step: the epoch at hand, and the next one that workers fetch ahead, are kept.
        self._turns_of_epoch = lru_cache(maxsize=4)(self._build_epoch)

    def __reduce__(self) -> tuple[type[Schedule], tuple[str, dict[str, int], int]]:
        # For loader processes that do not fork; the cache is not worth carrying.
        return Schedule, (self.kind, self.samples_per_epoch, self.global_batch_size)

    def modality_steps(self, epochs: int) -> dict[str, int]:
        """Steps of every modality after `epochs` whole epochs: S(epochs)."""
        return {m: -(-epochs * n // self.global_batch_size) for m, n in self.samples_per_epoch.items()}

    def epoch_steps(self, epoch: int) -> dict[str, int]:
        """Steps of every modality within epoch number `epoch` (from 0)."""
        before, after = self.modality_steps(epoch), self.modality_steps(epoch + 1)
        return {modality: after[modality] - before[modality] for modality in self.modalities}

    def total_steps(self, epochs: int) -> int:
        """Optimizer steps of `epochs` whole epochs, all modalities together; also the first step of epoch `epochs`."""
        return sum(self.modality_steps(epochs).values())

    def epoch_of(self, step: int) -> int:
        """The epoch (from 0) that optimizer step `step` (from 0) belongs to."""
        if step < 0:
            raise ValueError(f"step: {step}, must not be negative")
        low, high = 0, 1
        while self.total_steps(high) <= step:
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            if self.total_steps(middle) <= step:
                low = middle
            else:
                high = middle
        return low

    def at(self, step: int) -> Turn:
        """The turn of optimizer step `step` (from 0). O(log epochs) once its epoch has been laid out."""
        epoch = self.epoch_of(step)
        numbers, ordinals = self._turns_of_epoch(epoch)
        place = step - self.total_steps(epoch)
        modality = self.modalities[int(numbers[place])]
        return Turn(modality, self.modality_steps(epoch)[modality] + int(ordinals[place]), epoch)

    def _build_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Of every turn of an epoch: modality number, and how many turns that modality had before it in the epoch."""
        counts = list(self.epoch_steps(epoch).values())
        numbers = ORDERS[self.kind](counts)
        ordinals = np.empty(len(numbers), dtype=np.int64)
        for index, count in enumerate(counts):
            ordinals[numbers == index] = np.arange(count)
        return numbers, ordinals
