"""Pseudo-random permutations as pure functions of a key: no memory, the same on every machine and with every version of every library."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rb.core.seeding import hash_key

_ROUNDS = 8
_MASK = (1 << 64) - 1
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def _mix(value: int) -> int:
    """SplitMix64's finaliser (Steele et al. 2014): every bit of the result depends on every bit of ``value``."""
    value = ((value ^ (value >> 30)) * _FACTORS[0]) & _MASK
    value = ((value ^ (value >> 27)) * _FACTORS[1]) & _MASK
    return value ^ (value >> 31)


def _mix_all(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """``_mix`` of each of ``values``, in their place."""
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        values ^= values >> np.uint64(shift)
        values *= np.uint64(factor)
    values ^= values >> np.uint64(31)
    return values


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


def permute_all(indices: NDArray[np.int64], size: int, *key: object) -> NDArray[np.int64]:
    """``permute`` of each of ``indices`` [N], as int64 [N]; about 0.15 us each where they are many."""
    base = np.uint64(math.isqrt(size - 1) + 1)
    keys = [np.uint64(one) for one in _round_keys(key)]
    found = indices.astype(np.uint64)
    walking = np.arange(len(found))
    while len(walking):
        at = found[walking]
        left = at // base
        right = at - left * base
        for round_key in keys:
            mixed = _mix_all(right ^ round_key)
            mixed -= mixed // base * base  # % of numpy is much slower
            mixed += left  # both below base: no overflow
            left, right = right, np.where(mixed < base, mixed, mixed - base)
        found[walking] = left * base + right
        walking = walking[found[walking] >= size]
    return found.astype(np.int64)


def shuffled(start: int, stop: int, key: int) -> NDArray[np.int64]:
    """The numbers ``start`` .. ``stop`` - 1 in a pseudo-random order of ``key`` (64 bits) and ``start``: sorted by a hash of each."""
    seed = np.uint64(_mix((key & _MASK) ^ _mix(start)))
    return start + np.argsort(_mix_all(np.arange(1, stop - start + 1, dtype=np.uint64) ^ seed), kind="stable")
