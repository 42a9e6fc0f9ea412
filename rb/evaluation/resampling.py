"""How sure a mean over examples is: a bootstrap that draws whole sources, and the intervals and standard errors made from it.

Regions of one image or scene are not independent, so sources are drawn, never examples. Used by the comparison and by the shares of correct
captions: every interval and every standard error of the project's scores comes from here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from rb.core.seeding import generator

RESAMPLES = 1000
COVERAGE = 0.95


class SourceBootstrap:
    """Means of a set under ``RESAMPLES`` draws of its sources with replacement.

    The draws depend on the number of sources only, so values that are drawn with the same object, or of files with equal sources, are
    paired: differences of their means have the right spread.
    """

    def __init__(self, source_ids: Sequence[str]) -> None:
        """``source_ids``: the source of each example [N]."""
        self._sources = {source: place for place, source in enumerate(sorted(set(source_ids)))}
        self._place = np.array([self._sources[source] for source in source_ids], dtype=np.int64)

    def means(self, values: NDArray[np.float64], asked: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """The mean over the examples of the drawn sources: values [K, N] -> [K, RESAMPLES].

        ``asked`` [N] leaves examples out; a draw without any that is left is NaN.
        """
        number = len(self._sources)
        counted = np.ones(values.shape[1]) if asked is None else asked.astype(np.float64)
        sizes = np.bincount(self._place, counted, number)
        sums = np.stack([np.bincount(self._place, row * counted, number) for row in values], axis=1)  # [sources, K]
        draws, found = generator("sources", number), np.empty((len(values), RESAMPLES))
        for k in range(RESAMPLES):
            times = np.bincount(draws.integers(0, number, number), minlength=number)
            size = times @ sizes
            found[:, k] = times @ sums / size if size else np.nan
        return found

    def interval(self, drawn: NDArray[np.float64]) -> list[float] | None:
        """The 95 % interval of means, or of differences of means, [RESAMPLES]; none for one source.

        Quantiles of a bootstrap are too narrow for few sources: they lack Student's t and the factor sqrt(n / (n - 1)). The levels are
        moved outwards by both: the expanded percentile interval of Hesterberg 2015 (arXiv 1411.5279, section 4.2.2).
        """
        number = len(self._sources)
        if number < 2:
            return None
        outer = float(ndtr(stdtrit(number - 1, (1 - COVERAGE) / 2) * math.sqrt(number / (number - 1))))
        return [float(value) for value in np.quantile(drawn, [outer, 1 - outer])]

    def error(self, drawn: NDArray[np.float64], asked: NDArray[np.bool_]) -> float | None:
        """The standard error of a mean over the examples in ``asked`` [N], from its draws [RESAMPLES]; none for one source."""
        number = len(np.unique(self._place[asked]))
        return float(np.nanstd(drawn)) * math.sqrt(number / (number - 1)) if number > 1 else None
