"""Farthest point sampling on this device: whether its kernel picks the same points as torch's loop, also where distances are equal, and how long both take."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from rb.model.grouping import farthest_point_sample, sampling_backends

SIZES = ((16, 8_192, 512), (4, 40_000, 512))  # clouds, points, picks: objects and scenes
TIMED = 5


@dataclass
class Sampling:
    """One size by the kernel and by torch's loop, milliseconds a batch."""

    clouds: int
    points: int
    picks: int
    equal: bool
    kernel_ms: float
    torch_ms: float


def check_sampling(device: torch.device, sizes: tuple[tuple[int, int, int], ...] = SIZES) -> list[Sampling]:
    """Every size; none where the device has no kernel for it."""
    if sampling_backends(device)[0] != "triton":
        return []
    draws = torch.Generator(device).manual_seed(0)
    found = []
    for clouds, points, picks in sizes:
        cloud = torch.rand(clouds, points, 3, device=device, generator=draws)
        lattice = torch.randint(16, (clouds, points, 3), device=device, generator=draws).float()
        equal = True
        for given in (cloud, lattice):
            for skip in (False, True):
                ways = [farthest_point_sample(given, picks, skip, backend) for backend in ("triton", "torch")]
                equal &= torch.equal(*ways)
        kernel, loop = (_milliseconds(cloud, picks, backend) for backend in ("triton", "torch"))
        found.append(Sampling(clouds, points, picks, equal, kernel, loop))
    return found


def _milliseconds(cloud: Tensor, picks: int, backend: str) -> float:
    times = []
    for _ in range(TIMED):
        torch.cuda.synchronize(cloud.device)
        start = time.perf_counter()
        farthest_point_sample(cloud, picks, backend=backend)
        torch.cuda.synchronize(cloud.device)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)
