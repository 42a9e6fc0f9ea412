"""The order of samples as a pure function: position in a modality's endless stream -> manifest and sample.

An epoch's samples are in groups (``data.group_by_source``; of one sample each, unless asked for otherwise), its groups in blocks of
consecutive records, and some blocks, drawn by a permutation of all, are a window, within which a permutation puts the groups in order
(``data.order: blocks``). The full order is one block and one window. Nothing depends on ranks, workers or what was read before, so any
number of ranks sees the same batches, and a resume needs the step only.

Groups differ in size, so where a position's group begins is a sum over the groups before it in its window. A process makes these sums once
for each window, every 1,024th is kept, and keeps them for the window before too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from rb.core.config import DataConfig
from rb.core.seeding import hash_key
from rb.data.groups import STRIDE, Groups
from rb.data.permutation import permute, permute_all

T = TypeVar("T")
_SLOTS = 64 * STRIDE  # slots whose sums are made together: their arrays stay in the processor's cache


@dataclass(frozen=True)
class Arrangement:
    """What a stream does with its samples: the fields of ``DataConfig`` of these names."""

    group_by_source: int = 1
    order: str = "full"
    block_records: int = 1
    window_blocks: int = 1

    @classmethod
    def of(cls, data: DataConfig) -> Arrangement:
        """As a run file says."""
        return cls(data.group_by_source, data.order, data.block_records, data.window_blocks)

    @property
    def needs_groups(self) -> bool:
        """Whether it matters which record a sample is of."""
        return self.group_by_source > 1 or self.order == "blocks"

    def groups(self, records: NDArray[np.uint32]) -> Groups:
        """The tables of one manifest, whose samples are of ``records``; ``UnsortedError`` if these fall anywhere."""
        return Groups.of(records, self.group_by_source, self.block_records if self.order == "blocks" else None)


UNGROUPED = Arrangement()  # every sample by itself, in the full order


@dataclass(frozen=True)
class Place:
    """Where a position leads.

    Attributes:
        epoch: of the modality.
        manifest: its number in the stream.
        sample: its number in the manifest.
        group: the samples of its group, as they follow each other in the stream: of one record, and shown together.
        group_start: the position of the first of them.
    """

    epoch: int
    manifest: int
    sample: int
    group: tuple[int, ...]
    group_start: int


class Stream:
    """The endless stream of one modality over its manifests, each shown ``repeat`` times per epoch.

    Args:
        sizes: samples of each manifest.
        repeats: how often each is shown per epoch.
        arrangement: what to do with the samples of a record.
        groups: of each manifest, by ``arrangement.groups``; needed only where ``arrangement.needs_groups``.

    Raises:
        ValueError: a manifest without samples.
    """

    def __init__(
        self,
        modality: str,
        sizes: Sequence[int],
        repeats: Sequence[int],
        seed: int,
        arrangement: Arrangement = UNGROUPED,
        groups: Sequence[Groups | None] = (),
    ) -> None:
        if len(sizes) != len(repeats) or not sizes or min(sizes) < 1 or min(repeats) < 1:
            raise ValueError(
                f"data for {modality}: needs manifests with samples and repeats of at least 1, got {sizes} x {repeats}"
            )
        self.modality, self.seed, self.arrangement = modality, seed, arrangement
        self.sizes = list(sizes)
        self._length = sum(size * repeat for size, repeat in zip(sizes, repeats, strict=True))
        n = arrangement.group_by_source
        self._groups = [one for one in groups if one is not None]
        assert len(self._groups) == (len(sizes) if arrangement.needs_groups else 0), (arrangement, groups)
        self._counts = [len(groups) for groups in self._groups] if n > 1 else self.sizes  # groups of each manifest
        self._ends = list(accumulate(count * repeat for count, repeat in zip(self._counts, repeats, strict=True)))
        if arrangement.order == "full":
            self._blocks = np.array([0, self._ends[-1]]), np.array([0, self._length])
        else:
            columns = ("block_groups" if n > 1 else "block_samples", "block_samples")
            each = [
                np.concatenate(
                    [np.tile(getattr(g, name), repeat) for g, repeat in zip(self._groups, repeats, strict=True)]
                )
                for name in columns
            ]
            self._blocks = np.append(0, np.cumsum(each[0])), np.append(0, np.cumsum(each[1]))
        self._epochs: _Recent[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = _Recent(2)
        self._windows: _Recent[tuple[int, int], _Window] = _Recent(2)

    def __len__(self) -> int:
        """Samples per epoch."""
        return self._length

    def __getstate__(self) -> dict[str, object]:
        # What was kept for speed stays behind when a process that does not fork gets the stream.
        return {**self.__dict__, "_epochs": _Recent(2), "_windows": _Recent(2)}

    @property
    def num_groups(self) -> int:
        """Groups per epoch: how often an epoch reads and encodes a source."""
        return self._ends[-1]

    def locate(self, position: int) -> Place:
        """What stands at ``position`` (0, 1, 2, ... without end)."""
        epoch, turn = divmod(position, self._length)
        window = self._window(epoch, turn)
        if self.arrangement.group_by_source == 1:
            row, start = window.at(turn - window.start), turn
        else:
            row, start = window.find(turn - window.start)
            start += window.start
        manifest = bisect_right(self._ends, row)
        repeat, number = divmod(row - (self._ends[manifest - 1] if manifest else 0), self._counts[manifest])
        group: tuple[int, ...] = (number,)
        if self.arrangement.group_by_source > 1:
            key = hash_key("group", self.seed, self.modality, epoch, manifest, repeat)
            group = self._groups[manifest].members(number, key)
        return Place(epoch, manifest, group[turn - start], group, position - (turn - start))

    def window_start(self, position: int) -> int:
        """The position of the first sample of the window that holds ``position``; in the full order of its epoch."""
        epoch, turn = divmod(position, self._length)
        return position - turn + self._window(epoch, turn).start

    def _window(self, epoch: int, turn: int) -> _Window:
        if self.arrangement.order == "full":
            return self._windows.get((epoch, 0), lambda: self._make(epoch, 0, 0, self._blocks[0][:1]))
        order, starts = self._epochs.get(epoch, lambda: self._order_of_blocks(epoch))
        number = int(np.searchsorted(starts, turn, "right")) - 1
        size = self.arrangement.window_blocks
        blocks = order[number * size : (number + 1) * size]
        return self._windows.get((epoch, number), lambda: self._make(epoch, number, int(starts[number]), blocks))

    def _order_of_blocks(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The permuted blocks [B] of an epoch, and the turn at which each of its windows begins."""
        num_blocks = len(self._blocks[1]) - 1
        order = permute_all(np.arange(num_blocks), num_blocks, self.seed, self.modality, epoch, "blocks")
        samples = np.diff(self._blocks[1])[order]
        windows = np.add.reduceat(samples, np.arange(0, num_blocks, self.arrangement.window_blocks))
        return order, np.cumsum(windows) - windows

    def _make(self, epoch: int, number: int, start: int, blocks: NDArray[np.int64]) -> _Window:
        """Window ``number`` of an epoch; in the full order its key is what it was before there were windows."""
        edges = self._blocks[0]
        key = (self.seed, self.modality, epoch, *(() if self.arrangement.order == "full" else ("window", number)))
        sizes_of = self._sizes_of if self.arrangement.group_by_source > 1 else None
        return _Window(start, edges[blocks], edges[blocks + 1] - edges[blocks], key, sizes_of)

    def _sizes_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Samples of each of the epoch's groups ``rows`` [N]."""
        if len(self._groups) == 1:
            return self._groups[0].sizes[rows % self._counts[0]].astype(np.int64)
        found = np.empty(len(rows), np.int64)
        manifest = np.searchsorted(self._ends, rows, "right")
        for i, groups in enumerate(self._groups):
            here = manifest == i
            start = self._ends[i - 1] if i else 0
            found[here] = groups.sizes[(rows[here] - start) % self._counts[i]]
        return found


class _Window:
    """Groups that are permuted among themselves: those of some blocks.

    Args:
        start: its first turn in the epoch.
        first: [K] number of each block's first group in the epoch.
        counts: [K] groups of each block.
        key: of the permutation.
        sizes_of: numbers of groups -> their sizes; none where all are 1.
    """

    def __init__(
        self,
        start: int,
        first: NDArray[np.int64],
        counts: NDArray[np.int64],
        key: tuple[object, ...],
        sizes_of: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None,
    ) -> None:
        self.start, self._key = start, key
        self._shift, self._ends = first - (np.cumsum(counts) - counts), np.cumsum(counts)
        self._size = int(self._ends[-1])
        self._parts: _Recent[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = _Recent(4)
        self._sizes_of = sizes_of
        if sizes_of is not None:
            self._sums = self._make_sums(sizes_of)

    def at(self, slot: int) -> int:
        """The group at ``slot`` of the window, where every group has one sample."""
        row = permute(slot, self._size, *self._key)
        return row + int(self._shift[np.searchsorted(self._ends, row, "right")])

    def find(self, turn: int) -> tuple[int, int]:
        """The group that holds sample ``turn`` of the window, and the turn of its first sample."""
        part = int(np.searchsorted(self._sums, turn, "right")) - 1
        rows, starts = self._parts.get(part, lambda: self._part(part))
        slot = int(np.searchsorted(starts, turn, "right")) - 1
        return int(rows[slot]), int(starts[slot])

    def _rows(self, start: int, stop: int) -> NDArray[np.int64]:
        rows = permute_all(np.arange(start, min(stop, self._size)), self._size, *self._key)
        if len(self._ends) == 1:
            return rows + self._shift[0]
        return rows + self._shift[np.searchsorted(self._ends, rows, "right")]

    def _make_sums(self, sizes_of: Callable[[NDArray[np.int64]], NDArray[np.int64]]) -> NDArray[np.int64]:
        """Samples before every 1,024th slot."""
        parts = []
        for start in range(0, self._size, _SLOTS):
            sizes = sizes_of(self._rows(start, start + _SLOTS))
            parts.append(np.add.reduceat(sizes, np.arange(0, len(sizes), STRIDE)))
        sums = np.concatenate(parts)
        return np.cumsum(sums) - sums

    def _part(self, part: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The groups of 1,024 slots, and the turn of each one's first sample."""
        assert self._sizes_of is not None
        rows = self._rows(part * STRIDE, (part + 1) * STRIDE)
        sizes = self._sizes_of(rows)
        return rows, int(self._sums[part]) + np.cumsum(sizes) - sizes


K = TypeVar("K")


class _Recent(Generic[K, T]):
    """The last few values that were made, by key."""

    def __init__(self, number: int) -> None:
        self._number, self._kept = number, dict[K, T]()

    def get(self, key: K, make: Callable[[], T]) -> T:
        """The value of ``key``, made where it is not kept; the one made first goes."""
        if key not in self._kept:
            if len(self._kept) >= self._number:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = make()
        return self._kept[key]
