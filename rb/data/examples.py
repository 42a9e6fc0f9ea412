"""The examples of an index: the samples with the first caption of their object or record, found by number with little memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_STRIDE = 4096  # samples of which one sum is kept


class Examples:
    """Number of an example -> its sample.

    Args:
        captions: [S] number of each sample's caption within its object or record; a view of the mapped index.
    """

    def __init__(self, captions: NDArray[np.uint32]) -> None:
        self._captions = captions
        starts = range(0, len(captions), _STRIDE)
        counts = [np.count_nonzero(captions[start : start + _STRIDE] == 0) for start in starts]
        self._ends = np.cumsum(counts)  # examples up to the end of every stride

    def __len__(self) -> int:
        """Number of examples."""
        return int(self._ends[-1])

    def __getitem__(self, number: int) -> int:
        """The sample that is example ``number`` of 0 .. len - 1; ``IndexError`` for any other number."""
        return int(self.samples(np.array([number]))[0])

    def samples(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples that are the examples ``numbers`` [N]."""
        outside = (numbers < 0) | (numbers >= len(self))
        if outside.any():
            raise IndexError(f"example {numbers[outside][0]} of {len(self)}")
        found = np.empty(len(numbers), np.int64)
        strides = np.searchsorted(self._ends, numbers, "right")
        order = np.argsort(strides, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(strides[order])) + 1) if len(numbers) else ():
            stride = int(strides[rows[0]])
            start = stride * _STRIDE
            firsts = np.flatnonzero(self._captions[start : start + _STRIDE] == 0)
            found[rows] = start + firsts[numbers[rows] - self._ends[stride]]  # counted from the end of the stride
        return found
