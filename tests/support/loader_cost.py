"""``python -m tests.support.loader_cost``: what it costs a trainer to take a small batch that a loader process has ready: processor time, and by the clock."""

from __future__ import annotations

import statistics
import time

import torch
from torch.utils.data import Dataset

from rb.core.batch import Batch
from rb.core.modality import IMAGE_REGION
from rb.core.quiet import quiet_libraries
from rb.costs.random_models import SIZES, build_random
from rb.costs.real_step import with_numbers
from rb.costs.typical_batch import typical_batches
from rb.data.loading import Batches

BATCHES, FIRST, ROWS, PAUSE_S = 100, 5, 8, 0.05


class SameBatch(Dataset[Batch]):
    """One batch again and again."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __getitem__(self, _: int) -> Batch:
        return self._batch


def measure() -> tuple[int, float, float]:
    """Bytes of a batch of image regions, and the median ms of this process and of the clock."""
    model = build_random(SIZES["small_opt"], torch.device("cpu"), torch.float32)
    batch = with_numbers(next(typical_batches(model, IMAGE_REGION, ROWS, 4)), model)
    numbers = sum(value.nbytes for value in vars(batch).values() if isinstance(value, torch.Tensor))
    worked, waited = [], []
    batches = iter(Batches(SameBatch(batch), range(FIRST + BATCHES), 1, False))
    for number in range(FIRST + BATCHES):
        time.sleep(PAUSE_S)  # a step, in which the process gets the next one ready
        cpu, clock = time.process_time(), time.perf_counter()
        next(batches)
        if number >= FIRST:
            worked.append(time.process_time() - cpu)
            waited.append(time.perf_counter() - clock)
    return numbers, 1e3 * statistics.median(worked), 1e3 * statistics.median(waited)


if __name__ == "__main__":
    quiet_libraries()
    torch.set_num_threads(1)
    size, cpu_ms, clock_ms = measure()
    print(f"a batch of {size / 1e3:.0f} kB: {cpu_ms:.2f} ms of processor time, {clock_ms:.2f} ms by the clock")
