"""Which modality each optimizer step trains: a pure function of (configuration, step).

Holds the arithmetic of epochs; the orders within an epoch are in `rb/core/schedules.py`. Knows nothing of ranks, workers, data or
models; the loop, the data pipeline and `plan` ask it. Nothing of it is saved but the step.

A modality's data is one endless stream of positions (position p is sample p mod N of the permutation of epoch p div N) and
its k-th step shows the positions [k * G, (k + 1) * G), G being the global batch size. After E epochs it has made
S(E) = ceil(E * N / G) steps, so that every sample was shown at least E times and no batch is ever incomplete; epoch e
has S(e + 1) - S(e) steps of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from rb.core.schedules import SCHEDULES, Turn


class Schedule:
    """The endless sequence of turns. Modalities take their turns in the order in which they are given.

    Args:
        kind: a row of `SCHEDULES`.
        samples_per_epoch: for every modality that trains, how many samples one epoch shows.
        global_batch_size: samples of one optimizer step, over all ranks and accumulation steps.
        seed: of the run; for orders that draw.

    Raises ValueError for an unknown kind, no modality, a modality without samples, a batch size below 1.
    """

    def __init__(self, kind: str, samples_per_epoch: Mapping[str, int], global_batch_size: int, seed: int = 0) -> None:
        if kind not in SCHEDULES:
            raise ValueError(f"schedule: {kind!r} is unknown, choose one of {', '.join(SCHEDULES)}")
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
        self.seed = seed
        # Loops ask for one step after another: the current epoch, and the next one that workers fetch ahead, are kept.
        self._turns_of_epoch = lru_cache(maxsize=4)(self._build_epoch)

    def __reduce__(self) -> tuple[type[Schedule], tuple[str, dict[str, int], int, int]]:
        # For loader processes that do not fork; the cache is not worth carrying.
        return Schedule, (self.kind, self.samples_per_epoch, self.global_batch_size, self.seed)

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

    def epochs_after(self, steps: int) -> float:
        """Epochs that so many optimizer steps make, with the part of the one that is not over: 2.5."""
        whole = self.epoch_of(steps)
        first, next_first = self.total_steps(whole), self.total_steps(whole + 1)
        return whole + (steps - first) / (next_first - first)

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
        numbers = SCHEDULES[self.kind](counts, self.seed, epoch)
        ordinals = np.empty(len(numbers), dtype=np.int64)
        for index, count in enumerate(counts):
            ordinals[numbers == index] = np.arange(count)
        return numbers, ordinals
