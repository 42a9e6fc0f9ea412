"""Steps that were skipped because a loss or gradient was not finite: their rows in the journal, and what they add up to.

The journal is the only place that counts them: a resumed run counts on from its rows, and a row that a resume superseded does not count.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rb.core.metric_names import GRADIENT, SKIPPED, TOTAL, TRAIN, nonfinite_name, value_name
from rb.tracking.journal import encoded, read_rows


@dataclass(frozen=True)
class RankLosses:
    """One rank's part of a step.

    Attributes:
        losses: every term and ``total``, the rank's mean over its micro-batches.
        ids, positions: of its samples, in order.
    """

    losses: Mapping[str, float]
    ids: Sequence[str]
    positions: Sequence[int]

    @property
    def bad_terms(self) -> list[str]:
        """Terms that are not finite; ``total`` only where all terms are, so that their sum is at fault."""
        bad = [name for name, value in self.losses.items() if not math.isfinite(value)]
        return [name for name in bad if name != TOTAL] or bad


@dataclass(frozen=True)
class BadStep:
    """A step that was skipped.

    Attributes:
        step: as in metrics: the first step is 1.
        ranks: in rank order.
    """

    step: int
    modality: str
    ranks: tuple[RankLosses, ...]

    def counts(self) -> Counter[str]:
        """Term -> on how many ranks it was not finite; ``grad``: 1 where every loss of every rank was finite, so that only the gradient was not."""
        found = Counter(term for rank in self.ranks for term in rank.bad_terms)
        return found or Counter([GRADIENT])

    def row(self) -> dict[str, Any]:
        """The fields of its row in the journal."""
        ranks = [
            {
                "terms": rank.bad_terms,
                "losses": encoded(rank.losses),
                "ids": list(rank.ids),
                "positions": list(rank.positions),
            }
            for rank in self.ranks
        ]
        return {"step": self.step, "modality": self.modality, "ranks": ranks}


def read_bad_steps(journal: str | Path) -> list[BadStep]:
    """The skipped steps of a run as it stands now, by step: without those that a resume superseded."""
    found: dict[int, BadStep] = {}
    for row, _ in read_rows(journal, on_bad=lambda _: None):
        if row["kind"] == "bad_step":
            ranks = tuple(RankLosses(rank["losses"], rank["ids"], rank["positions"]) for rank in row["ranks"])
            found[row["step"]] = BadStep(row["step"], row["modality"], ranks)
        elif row["kind"] == "resume":
            found = {step: bad for step, bad in found.items() if step <= row["step"]}
    return [found[step] for step in sorted(found)]


class BadCounts:
    """What bad steps add up to, as metrics: skipped steps of the run and by modality, and for each term how often a rank's was not finite."""

    def __init__(self, bad: Iterable[BadStep] = ()) -> None:
        self._counts = Counter({value_name(TRAIN, SKIPPED): 0})
        for one in bad:
            self.add(one)

    def add(self, bad: BadStep) -> None:
        """Count one."""
        self._counts[value_name(TRAIN, SKIPPED)] += 1
        self._counts[value_name(TRAIN, SKIPPED, bad.modality)] += 1
        for term, ranks in bad.counts().items():
            self._counts[nonfinite_name(bad.modality, term)] += ranks

    def values(self) -> dict[str, float]:
        """By metric name. Of modalities and terms only those that were hit."""
        return {name: float(count) for name, count in self._counts.items()}
