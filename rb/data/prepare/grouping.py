"""Rows that arrive in any order, grouped by their source in bounded memory: 16 bytes a row, the rows themselves in a temporary file.

For lists of many millions of regions, which need not stand image by image.
"""

from __future__ import annotations

import itertools
import os
import struct
import tempfile
from array import array
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from rb.core.files import cannot_write
from rb.data.prepare.plan import Items

MAX_GROUP_BYTES = 1 << 20  # of all rows of a source: some 10,000; each takes ten times its bytes once it is a region
_NAME = struct.Struct("<I")  # before each row: the length of its source's name, and the name


@dataclass(frozen=True)
class Group:
    """The rows of one source.

    Attributes:
        source: its name.
        count: how many rows it has.
        rows: in order of arrival; none where they have more than ``MAX_GROUP_BYTES`` together.
    """

    source: str
    count: int
    rows: list[bytes] | None


class Spool:
    """Takes the rows. Its file has no name in ``folder``, so that nothing is left when the process ends, however it does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=1 << 20)  # noqa: SIM115 (Groups reads it to the end)
        except OSError as error:
            raise cannot_write(folder, error) from error
        self._hashes, self._begins, self._size = array("q"), array("Q"), 0

    def add(self, source: str, row: bytes) -> None:
        """One row of ``source``.

        Raises:
            OSError: the disk takes no more; it names the folder.
        """
        name = source.encode("utf-8", "surrogatepass")
        self._hashes.append(hash(source))
        self._begins.append(self._size)
        self._size += _NAME.size + len(name) + len(row)
        try:
            self._file.write(_NAME.pack(len(name)) + name + row)
        except OSError as error:
            raise self._failed(error) from error

    def grouped(self) -> Groups:
        """The rows by source, in order of first appearance. No row can be added after it."""
        self._begins.append(self._size)
        try:
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from error
        hashes, begins = np.frombuffer(self._hashes, np.int64), np.frombuffer(self._begins, np.uint64)
        return Groups(self._file, hashes, begins)

    def _failed(self, error: OSError) -> OSError:
        failed = cannot_write(self._folder, error)
        with suppress(OSError):  # what is buffered cannot be written either
            self._file.close()
        return failed


class Groups(Items[Group]):
    """All groups. A group is read from the file whenever it is asked for, which takes a moment only where its rows lie together."""

    def __init__(self, file: IO[bytes], hashes: np.ndarray, begins: np.ndarray) -> None:
        """``hashes`` [N] of the rows' sources; ``begins`` [N + 1]: where each row begins in the file, and where the last one ends."""
        self._file, self._begins = file, begins
        order = np.argsort(hashes, kind="stable").astype(np.uint32 if len(hashes) < 1 << 32 else np.int64)
        new = np.ones(len(order), bool)
        new[1:] = hashes[order[1:]] != hashes[order[:-1]]
        starts = np.flatnonzero(new)
        counts = np.diff(starts, append=len(order))
        appearance = np.argsort(order[starts])  # the sort is stable: a group's first row stands first
        self._order, self._starts, self._counts = order, starts[appearance], counts[appearance]

    def __len__(self) -> int:
        return len(self._starts)

    def item(self, number: int) -> Group:
        """As of ``Items``."""
        start, count = int(self._starts[number]), int(self._counts[number])
        numbers = self._order[start : start + count]
        first, last = int(numbers[0]), int(numbers[-1])
        if last - first == count - 1:
            ends = self._begins[first : last + 2].tolist()
            if ends[-1] - ends[0] <= MAX_GROUP_BYTES:
                piece = self._read(ends[0], ends[-1])
                return _group([piece[a - ends[0] : b - ends[0]] for a, b in itertools.pairwise(ends)], count)
        begins, ends = self._begins[numbers].tolist(), self._begins[numbers.astype(np.int64) + 1].tolist()
        if sum(ends) - sum(begins) > MAX_GROUP_BYTES:
            return Group(_group([self._read(begins[0], ends[0])], 1).source, count, None)
        return _group([self._read(a, b) for a, b in zip(begins, ends, strict=True)], count)

    def _read(self, begin: int, end: int) -> bytes:
        return os.pread(self._file.fileno(), end - begin, begin)


def _group(pieces: list[bytes], count: int) -> Group:
    (length,) = _NAME.unpack_from(pieces[0])
    head = pieces[0][: _NAME.size + length]
    for piece in pieces:
        if not piece.startswith(head):
            raise ValueError(
                f"two sources have the same 64-bit hash, {head[_NAME.size :]!r:.80} is one of them: a chance of one in a million; "
                "start the same command again"
            )
    return Group(head[_NAME.size :].decode("utf-8", "surrogatepass"), count, [piece[len(head) :] for piece in pieces])
