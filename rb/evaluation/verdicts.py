"""Shares of correct captions with their standard error: means of yes-or-no verdicts, one per example, from a judge.

The judge is an argument: it knows the scenes (for the toy world: rb/toy/world/judge.py); this file and rb/evaluation/scoring.py do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rb.data.predictions import Prediction
from rb.evaluation.resampling import SourceBootstrap

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
    """Per name in ``VERDICTS`` that was given: ``share``, ``n``, and ``error``, the standard error over sources (one source: None)."""
    bootstrap = SourceBootstrap([row.source_id for row in rows])
    found: dict[str, dict[str, Any]] = {}
    for name in VERDICTS:
        asked = np.array([name in verdict for verdict in verdicts], dtype=np.bool_)
        if asked.any():
            held = np.array([bool(verdict.get(name)) for verdict in verdicts], dtype=np.float64)
            error = bootstrap.error(bootstrap.means(held[None], asked)[0], asked)
            found[name] = {"share": float(held[asked].mean()), "n": int(asked.sum()), "error": error}
    return found
