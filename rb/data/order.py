"""The order of samples as a pure function: position in a modality's endless stream -> manifest and sample.

Position p is sample p mod N of the permutation of epoch p div N. Nothing depends on ranks, workers or what was read before, so any number of
ranks sees the same batches and a resume costs nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from rb.core.seeding import hash_key

_ROUNDS = 8
_MASK = (1 << 64) - 1


def _mix(value: int) -> int:
    """SplitMix64's finaliser (Steele et al. 2014): every bit of the result depends on every bit of ``value``."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


@lru_cache(maxsize=64)
def _round_keys(key: tuple[object, ...]) -> tuple[int, ...]:
    return tuple(hash_key("order", *key, i) & _MASK for i in range(_ROUNDS))


def permute(index: int, size: int, *key: object) -> int:
    """``index`` of 0 .. size - 1 under a pseudo-random permutation of these numbers, keyed by ``key``; no memory, about 10 us.

    A Feistel network on pairs of digits base ceil(sqrt(size)), walked along its cycle until the result is below ``size`` (Black and
    Rogaway, "Ciphers with arbitrary finite domains", 2002). Integers only, so it is the same with every version of every library.
    """
    assert 0 <= index < size, (index, size)
    base = math.isqrt(size - 1) + 1
    keys = _round_keys(key)
    while True:
        left, right = divmod(index, base)
        for round_key in keys:
            left, right = right, (left + _mix(right ^ round_key)) % base
        index = left * base + right
        if index < size:
            return index


@dataclass(frozen=True)
class Place:
    """Where a position leads: the epoch, the manifest's number in the stream, the sample's number in the manifest."""

    epoch: int
    manifest: int
    sample: int


class Stream:
    """The endless stream of one modality over its manifests, each shown ``repeat`` times per epoch.

    Args:
        sizes: samples of each manifest.
        repeats: how often each is shown per epoch.
    """

    def __init__(self, modality: str, sizes: Sequence[int], repeats: Sequence[int], seed: int) -> None:
        if len(sizes) != len(repeats) or not sizes or min(sizes) < 1 or min(repeats) < 1:
            raise ValueError(
                f"data for {modality}: needs manifests with samples and repeats of at least 1, got {sizes} x {repeats}"
            )
        self.modality, self.seed = modality, seed
        self.sizes = list(sizes)
        self._ends = list(accumulate(size * repeat for size, repeat in zip(sizes, repeats, strict=True)))

    def __len__(self) -> int:
        """Samples per epoch."""
        return self._ends[-1]

    def locate(self, position: int) -> Place:
        """What stands at ``position`` (0, 1, 2, ... without end)."""
        epoch, turn = divmod(position, len(self))
        row = permute(turn, len(self), self.seed, self.modality, epoch)
        manifest = bisect_right(self._ends, row)
        start = self._ends[manifest - 1] if manifest else 0
        return Place(epoch, manifest, (row - start) % self.sizes[manifest])
