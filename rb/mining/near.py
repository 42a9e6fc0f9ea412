"""Pictures that look the same among millions: which looks (256 bits, ``Source.look``) differ in a few bits from an earlier one.

Looks that differ in at most ``most`` bits agree in at least one of ``most + 1`` parts of their bits. So only looks that share a part are compared,
part after part, in memory of a few numbers a look. A part takes its bits from all over the picture: flat areas, which many pictures share, then
fill no part alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LOOK_BYTES = 32
WINDOW = (
    4096  # looks that share a part beyond this many are each compared with the next so many only: mostly flat pictures
)


def later_duplicates(looks: NDArray[np.uint8], most: int) -> NDArray[np.bool_]:
    """Which of ``looks`` [N, 32] in order look as an earlier one that stays: [N].

    Two looks are the same if they are equal, or differ in at most ``most`` bits and in an eighth of the bits that are set in either: flat
    pictures have few (the rule of ``rb data verify --against``).
    """
    assert looks.shape[1:] == (LOOK_BYTES,), looks.shape
    words = np.ascontiguousarray(looks).view(np.uint64)
    by_value = np.lexsort(words.T)  # stable: equal looks in their order
    begins = np.ones(len(looks), bool)
    begins[1:] = (words[by_value[1:]] != words[by_value[:-1]]).any(axis=1)
    first = by_value[begins]
    different = np.sort(first)  # of equal looks the first, in order
    dropped = np.zeros(len(different), bool)
    later, earlier = _near_pairs(looks[different], most)
    for one, other in zip(
        later.tolist(), earlier.tolist(), strict=True
    ):  # by the later one: whether the earlier stays is known
        if not dropped[other]:
            dropped[one] = True
    repeated: NDArray[np.bool_] = np.ones(len(looks), bool)
    repeated[different] = dropped
    return repeated


def _near_pairs(looks: NDArray[np.uint8], most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (later, earlier) of numbers of ``looks`` that are the same by the rule above, sorted by the later one."""
    none = np.zeros(0, np.int64)
    if most < 1 or len(looks) < 2:
        return none, none
    words = np.ascontiguousarray(looks).view(np.uint64)
    found: list[NDArray[np.int64]] = []
    for part in range(most + 1):
        keys = _part(looks, part, most + 1)
        order = np.argsort(keys, kind="stable").astype(np.int64)
        keys = keys[order]
        rows = np.arange(len(keys) - 1)
        for step in range(1, WINDOW + 1):
            rows = rows[rows + step < len(keys)]
            rows = rows[keys[rows] == keys[rows + step]]
            if not len(rows):
                break
            one, other = order[rows], order[rows + step]
            distance = np.bitwise_count(words[one] ^ words[other]).sum(axis=1, dtype=np.int64)
            close = distance <= most
            one, other, distance = one[close], other[close], distance[close]
            either = np.bitwise_count(words[one] | words[other]).sum(axis=1, dtype=np.int64)
            same = distance * 8 <= either
            found.append(np.stack([np.maximum(one, other)[same], np.minimum(one, other)[same]]))
    if not found:
        return none, none
    pairs = np.unique(np.concatenate(found, axis=1), axis=1)
    return pairs[0], pairs[1]


def _part(looks: NDArray[np.uint8], part: int, parts: int) -> NDArray[np.uint64]:
    """Every ``parts``-th bit of each look from bit ``part`` on, up to 64 of them, as one number."""
    keys = np.zeros(len(looks), np.uint64)
    for bit in range(part, LOOK_BYTES * 8, parts)[:64]:
        keys = (keys << np.uint64(1)) | ((looks[:, bit // 8] >> np.uint8(7 - bit % 8)) & np.uint8(1)).astype(np.uint64)
    return keys
