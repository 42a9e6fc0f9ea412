"""Loss terms, gradient norm and speed between two log points: kept on the device, averaged over steps and ranks, fetched once.

The loop fills a `Window` every step and asks for its values every `log_every` steps; the names are in ``rb/core/metric_names.py``.
"""

from __future__ import annotations

import time
from collections import Counter

import torch
from torch import Tensor

from rb.core import dist
from rb.core.metric_names import GRAD_NORM, SPEED, TRAIN, loss_name, value_name


class Window:
    """Sums since the last `values()`. The same calls on all ranks."""

    def __init__(self, global_batch_size: int, device: torch.device) -> None:
        self._batch, self._device = global_batch_size, device
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[tuple[str, str], Tensor] = {}  # (modality, term) -> 0-dim sum over the modality's steps
        self._steps: Counter[str] = Counter()
        self._seconds: Counter[str] = Counter()
        self._norm = torch.zeros((), device=self._device)
        self._last = time.perf_counter()

    def add(self, modality: str, terms: dict[str, Tensor], grad_norm: Tensor | float) -> None:
        """Note one step whose update was applied."""
        for term, value in terms.items():
            key = (modality, term)
            self._sums[key] = self._sums[key] + value if key in self._sums else value
        self._norm = self._norm + grad_norm
        self._steps[modality] += 1
        self._time(modality)

    def add_skipped(self, modality: str) -> None:
        """Note the time of a step that was skipped because something was not finite: its losses are in no average."""
        self._time(modality)

    def _time(self, modality: str) -> None:
        now = time.perf_counter()
        self._seconds[modality] += now - self._last  # type: ignore[assignment]
        self._last = now

    def restart_clock(self) -> None:
        """Leave out of the speed what was done since the last step (validation)."""
        self._last = time.perf_counter()

    def values(self) -> dict[str, float]:
        """Means over the steps since the last call and over ranks, by metric name. One fetch from the device. Collective."""
        sums = [value.double() for value in self._sums.values()]
        fetched = dist.all_reduce_sum(torch.stack([self._norm.double(), *sums])).tolist()
        ranks = dist.world_size()
        values = {
            loss_name(TRAIN, modality, term): total / ranks / self._steps[modality]
            for (modality, term), total in zip(self._sums, fetched[1:], strict=True)
        }
        steps, seconds = sum(self._steps.values()), sum(self._seconds.values())
        if steps:
            values[value_name(TRAIN, GRAD_NORM)] = fetched[0] / ranks / steps
            values[value_name(TRAIN, SPEED)] = steps * self._batch / seconds
            for modality, count in self._steps.items():
                values[value_name(TRAIN, SPEED, modality)] = count * self._batch / self._seconds[modality]
        self._clear()
        return values
