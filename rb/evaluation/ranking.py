"""Scores of rankings: retrieval in both directions, and classes by similarity (zero-shot), from the ranks in the rows of ``rb predict``.

Beside each score stands what drawing lots would give.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb
from statistics import fmean
from typing import NamedTuple

from rb.core.ranking import CLASS, ITC, SOURCE, TEXT
from rb.core.strict_json import FormatError
from rb.core.text import clean_caption
from rb.data.predictions import Prediction

RECALLS = (1, 5, 10)
TOPS = (1, 5)


class Rankings(NamedTuple):
    """Scores, 0 to 1, by who ranked (``itc``, ``itm``), and of drawing lots."""

    scores: dict[str, dict[str, float]]
    chance: dict[str, float]


def score_classes(rows: Sequence[Prediction], num_classes: int) -> Rankings:
    """Top-1, top-5 and the mean over classes of top-1; classes without examples are left out.

    Raises:
        FormatError: a row that is not of ``rb predict --task zeroshot``.
    """
    by_class: dict[str, list[int]] = {}
    for row in rows:
        by_class.setdefault(row.references[0], []).append(_ranks(row, ITC, CLASS)[0])
    each = [rank for found in by_class.values() for rank in found]
    scores = {f"top{k}": _share(each, k) for k in TOPS} | {
        "class_mean": fmean(_share(found, 1) for found in by_class.values())
    }
    chance = {f"top{k}": min(1.0, k / num_classes) for k in TOPS} | {"class_mean": 1 / num_classes}
    return Rankings({ITC: scores}, chance)


def score_retrieval(rows: Sequence[Prediction]) -> Rankings:
    """Recall at 1, 5 and 10: of an example's texts among all texts, and of a text's example among all examples; by ITC, then by ITM.

    Raises:
        FormatError: a row that is not of ``rb predict --task retrieval``.
    """
    scores: dict[str, dict[str, float]] = {}
    for who in rows[0].ranks or {ITC: {}}:
        found = {
            TEXT: [_ranks(row, who, TEXT)[0] for row in rows],
            SOURCE: [rank for row in rows for rank in _ranks(row, who, SOURCE)],
        }
        scores[who] = {f"{what}_R{k}": _share(each, k) for what, each in found.items() for k in RECALLS}
    return Rankings(scores, _chance(rows))


def texts_of(row: Prediction) -> list[str]:
    """The texts of a row as they are compared: as the model reads them, each once."""
    return list(dict.fromkeys(map(clean_caption, row.references)))


def _chance(rows: Sequence[Prediction]) -> dict[str, float]:
    """Recalls of an order that is drawn by lot; a text that several examples have is right for each of them."""
    own = [texts_of(row) for row in rows]
    having = Counter(text for texts in own for text in texts)
    texts = {f"{TEXT}_R{k}": fmean(_drawn(len(having), len(texts), k) for texts in own) for k in RECALLS}
    examples = [having[clean_caption(text)] for row in rows for text in row.references]
    return texts | {f"{SOURCE}_R{k}": fmean(_drawn(len(rows), n, k) for n in examples) for k in RECALLS}


def _drawn(of: int, right: int, most: int) -> float:
    """The probability that one of ``right`` among ``of`` is within ``most`` that are drawn."""
    return 1.0 if most >= of else 1 - comb(of - right, most) / comb(of, most)


def _share(each: Sequence[int], most: int) -> float:
    return sum(rank < most for rank in each) / len(each)


def _ranks(row: Prediction, who: str, what: str) -> list[int]:
    try:
        found = (row.ranks or {})[who][what]
    except KeyError:
        found = []
    if len(found) != (len(row.references) if what == SOURCE else 1):
        task = "zeroshot" if what == CLASS else "retrieval"
        raise FormatError(f"id {row.id!r}: has no rank of its {what} by {who}; predict it with --task {task}")
    return found
