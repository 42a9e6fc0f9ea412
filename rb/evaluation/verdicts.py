"""Shares of correct captions with their standard error: means of yes-or-no verdicts, one per example, from a judge.

The judge is an argument: it knows the scenes (for the toy world: rb/toy/world/judge.py); this file and rb/evaluation/scoring.py do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rb.core.seeding import generator
from rb.data.predictions import Prediction

RESAMPLES = 1000
# A judge's verdict on an example -> what it means. A verdict that the judge does not give for an example does not count there.
VERDICTS = {
    "true": "the whole caption is true of the scene",
    "true_elsewhere": "control: the same caption is true of another scene of the file",
    "true_of_box": "the whole caption is true of the boxed object",
    "right_object": "it is true of the boxed object and of no other",
    "true_of_box_hard": "the whole caption is true of the boxed object, in regions where another object is of the same kind",
    "right_object_hard": "it is true of the boxed object and of no other, in regions where another object is of the same kind",
    "hard": "share of the regions where another object is of the same kind (shape, and colour if it has one)",
}
Judge = Callable[[Sequence[Prediction]], list[dict[str, bool]]]


def shares(rows: Sequence[Prediction], verdicts: Sequence[Mapping[str, bool]]) -> dict[str, dict[str, Any]]:
    """Per name in ``VERDICTS`` that was given: ``share``, ``n``, and ``error``, the standard error by a bootstrap over sources.

    Regions of one source are not independent, so whole sources are drawn. One source alone has no error (None).
    """
    sources = sorted({row.source_id for row in rows})
    place = {source: i for i, source in enumerate(sources)}
    draws = generator("verdicts", len(sources)).multinomial(len(sources), [1 / len(sources)] * len(sources), RESAMPLES)
    found: dict[str, dict[str, Any]] = {}
    for name in VERDICTS:
        held, asked = np.zeros(len(sources)), np.zeros(len(sources))
        for row, verdict in zip(rows, verdicts, strict=True):
            if name in verdict:
                held[place[row.source_id]] += verdict[name]
                asked[place[row.source_id]] += 1
        if asked.any():
            weight = draws @ asked  # [RESAMPLES]
            means = (draws @ held)[weight > 0] / weight[weight > 0]
            error = float(means.std()) if (asked > 0).sum() > 1 else None
            found[name] = {"share": float(held.sum() / asked.sum()), "n": int(asked.sum()), "error": error}
    return found
