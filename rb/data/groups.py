"""The samples of one manifest in groups: up to n samples of one record, so that a batch reads and encodes their source once.

Tables of the index's column "record" alone, made in one pass over it: one byte a group, and a few numbers for every 1,024th group and every block.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from rb.data.permutation import shuffled

STRIDE = 1024  # groups of which one sum is kept
_ROWS = 1 << 16  # samples looked at together


class UnsortedError(ValueError):
    """The samples of an index are not in the order of its records."""


@dataclass(frozen=True)
class Groups:
    """All groups, in the order of the records. A record with c samples makes ceil(c / n) groups, whose sizes differ by at most one.

    Which samples of its record a group holds is drawn (``members``); its size is not.

    Attributes:
        records: [S] the record of each sample, rising; a view of the mapped index.
        sizes: [G] samples of each group.
        block_groups: [B] groups of each block of consecutive records.
        block_samples: [B] samples of each block.
        sums: [G / 1,024 + 1] samples before every 1,024th group.
    """

    records: NDArray[np.uint32]
    sizes: NDArray[np.unsignedinteger]
    block_groups: NDArray[np.int64]
    block_samples: NDArray[np.int64]
    sums: NDArray[np.int64]

    @classmethod
    def of(cls, records: NDArray[np.uint32], n: int, block_records: int | None) -> Groups:
        """In groups of at most ``n`` and blocks of ``block_records`` (none: one block); ``UnsortedError`` if ``records`` falls anywhere."""
        by_block = np.zeros((2, int(records.max()) // block_records + 1 if block_records else 1), np.int64)
        pieces = []
        for numbers, counts in _runs(records):
            parts = -(-counts // n)
            block = numbers // block_records if block_records else np.zeros(1, np.int64)
            first = np.flatnonzero(np.diff(block, prepend=-1))  # where a block begins
            for row, what in zip(by_block, (parts, counts), strict=True):
                row[block[first]] += np.add.reduceat(what, first)
            pieces.append(_even_parts(counts, parts).astype(np.min_scalar_type(n)))
        sizes = np.concatenate(pieces)
        sums = [sizes[start : start + STRIDE].sum(dtype=np.int64) for start in range(0, len(sizes), STRIDE)]
        return cls(records, sizes, by_block[0], by_block[1], np.append(0, np.cumsum(sums)))

    def __len__(self) -> int:
        """Number of groups."""
        return len(self.sizes)

    def members(self, number: int, key: int) -> tuple[int, ...]:
        """The samples of group ``number`` where those of its record are drawn by ``key`` (64 bits)."""
        stride = number // STRIDE
        row = int(self.sums[stride]) + int(self.sizes[stride * STRIDE : number].sum(dtype=np.int64))
        column = cast("Sequence[int]", self.records)
        record = column[row]
        start, stop = bisect_left(column, record, hi=row), bisect_right(column, record, lo=row)
        if stop - start == 1:
            return (row,)
        drawn = shuffled(start, stop, key)[row - start :]
        return tuple(drawn[: int(self.sizes[number])].tolist())


def _runs(records: NDArray[np.uint32]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(number, samples) of each record that has samples, many at a time."""
    begun = 0  # first sample of the record that is not at its end yet
    for start in range(0, len(records), _ROWS):
        part = records[max(0, start - 1) : start + _ROWS].astype(np.int64)
        steps = np.diff(part)
        if (steps < 0).any():
            raise UnsortedError(f"sample {max(1, start) + int(np.argmax(steps < 0))}")
        edges = np.flatnonzero(steps) + max(1, start)
        if start + _ROWS >= len(records):
            edges = np.append(edges, len(records))
        if len(edges):
            yield records[edges - 1].astype(np.int64), np.diff(edges, prepend=begun)
            begun = edges[-1]


def _even_parts(counts: NDArray[np.int64], parts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sizes of ``parts`` even parts of each of ``counts``, one after another: part j of g ends at c (j + 1) // g."""
    if len(counts) == parts.sum():
        return counts
    count, of = np.repeat(counts, parts), np.repeat(parts, parts)
    part = np.arange(len(of)) - np.repeat(np.cumsum(parts) - parts, parts)
    return (part + 1) * count // of - part * count // of
