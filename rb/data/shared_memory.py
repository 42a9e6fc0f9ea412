"""Room for batches that loader processes make ahead of time: how much /dev/shm has, how much they need. Without torch, for checks before a start."""

from __future__ import annotations

import os
from pathlib import Path

SHM = Path("/dev/shm")
AHEAD = 2  # batches that each process prepares
REMEDY = "give the container more (docker run --shm-size=8g, or --ipc=host), or use fewer loader processes (data.num_workers, --workers)"


def size() -> tuple[int, int] | None:
    """(free, all) bytes of shared memory; none where this system has no such place."""
    try:
        found = os.statvfs(SHM)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


def needed(batch_bytes: int, num_workers: int, ranks: int) -> int:
    """Bytes of the batches that ``ranks`` processes of a host hold ahead at most, each with ``num_workers`` loader processes."""
    return batch_bytes * AHEAD * num_workers * ranks
