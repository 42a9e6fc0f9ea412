"""The table of caption metrics: name, direction, where it is shown, how it is computed. Everything that knows metrics reads it.

Readers: scoring and its file, MLflow, Table 1, the report, model cards, the comparison, validation while training with its ``keep_best``, and
``rb metrics doctor``. A new metric is one row here and its function (docs/extending.md). All values are fractions as ``pycocoevalcap`` gives
them (CIDEr 0 to 10, the others 0 to 1); people see them times 100, as the paper prints them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

HIGHER, LOWER = "higher", "lower"
TABLE, REPORT, CARD, COMPARISON = "table", "report", "card", "comparison"
EVERYWHERE = frozenset({TABLE, REPORT, CARD, COMPARISON})

Tokenised = Mapping[str, Sequence[str]]  # id -> tokenised texts, as pycocoevalcap's scorers take them
# (references, predictions with one text per id) -> value of the whole set, and in the order of the ids one of each example or nothing
Score = Callable[[Tokenised, Tokenised], tuple[float, Sequence[float] | None]]


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: as in ``metrics.json`` and in MLflow.
        score: computes it; none where a Java program does (rb/evaluation/caption_metrics.py).
        better: ``HIGHER`` or ``LOWER``; none for what only describes captions: then there is no best model and no ``keep_best``.
        shown_in: out of ``TABLE``, ``REPORT``, ``CARD``, ``COMPARISON``; the score file and MLflow have every metric.
        per_example: kept for each example too; the set's value is their mean. The comparison gives it intervals.
        while_training: computed in validation, where ``validation.keep_best`` may name it.
        perfect: value of captions equal to their only references, which ``rb metrics doctor`` expects; none where it depends on them.
    """

    name: str
    score: Score | None
    better: str | None = HIGHER
    shown_in: frozenset[str] = frozenset()
    per_example: bool = False
    while_training: bool = False
    perfect: float | None = 1.0

    def __post_init__(self) -> None:
        assert self.score or self.per_example or COMPARISON not in self.shown_in, f"{self.name} cannot be compared"

    @property
    def label(self) -> str:
        """The name for people: ``ROUGE-L`` for ``ROUGE_L``."""
        return self.name.replace("_", "-")

    def best_of(self, texts: Iterable[str]) -> str | None:
        """The best of values as they are printed; none if all are equal, or the metric has no better and worse."""
        numbers = {text for text in texts if text.replace(".", "", 1).isdigit()}
        if self.better is None or len(numbers) < 2:
            return None
        return max(numbers, key=float) if self.better == HIGHER else min(numbers, key=float)


def _cider(references: Tokenised, predictions: Tokenised) -> tuple[float, Sequence[float]]:
    """Vedantam et al. 2015; words are weighed by the set's references, so a value belongs to a set."""
    from pycocoevalcap.cider.cider import Cider

    value, each = Cider().compute_score(references, predictions)
    return float(value), [float(one) for one in each]


def _bleu(n: int) -> Score:
    """Papineni et al. 2002, up to n-grams of this length."""

    def score(references: Tokenised, predictions: Tokenised) -> tuple[float, None]:
        from pycocoevalcap.bleu.bleu import Bleu

        return float(Bleu(n).compute_score(references, predictions, verbose=0)[0][-1]), None

    return score


def _rouge_l(references: Tokenised, predictions: Tokenised) -> tuple[float, None]:
    """Lin 2004, longest common subsequence."""
    from pycocoevalcap.rouge.rouge import Rouge

    return float(Rouge().compute_score(references, predictions)[0]), None


_LISTED = frozenset({REPORT, CARD})
_ROWS = (
    Metric("CIDEr", _cider, shown_in=EVERYWHERE, per_example=True, while_training=True, perfect=10.0),
    Metric("SPICE", None, shown_in=EVERYWHERE, per_example=True),
    Metric("BLEU-1", _bleu(1)),
    Metric("BLEU-2", _bleu(2)),
    Metric("BLEU-3", _bleu(3)),
    Metric("BLEU-4", _bleu(4), shown_in=_LISTED),
    Metric("METEOR", None, shown_in=_LISTED),
    Metric("ROUGE_L", _rouge_l, shown_in=_LISTED),
)
METRICS: dict[str, Metric] = {row.name: row for row in _ROWS}


def shown_in(place: str) -> list[Metric]:
    """The metrics of ``TABLE``, ``REPORT``, ``CARD`` or ``COMPARISON``, in the table's order."""
    return [metric for metric in METRICS.values() if place in metric.shown_in]


def of_ablations() -> list[Metric]:
    """The metrics of an ablation's table: those of Table 1 that need no Java."""
    return [metric for metric in shown_in(TABLE) if metric.score is not None]


def ranking() -> Metric:
    """The metric by which examples are the best and the worst: the first that has values per example."""
    return next(metric for metric in METRICS.values() if metric.per_example)


def while_training() -> list[Metric]:
    """The metrics of validation while training."""
    return [metric for metric in METRICS.values() if metric.while_training]


def check_metrics(names: Iterable[str]) -> None:
    """``ValueError`` for the first name that is not in the table."""
    for name in names:
        if name not in METRICS:
            raise ValueError(f"unknown metric {name!r}; known: {', '.join(METRICS)}")


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: ``CIDEr``, ``CIDEr and SPICE``, ``A, B and C``."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def cider_remark(attainable: Mapping[str, float]) -> str | None:
    """What must be said of a set where even a perfect captioner's CIDEr is 0; none for any other set.

    CIDEr weighs a sequence of words by log(examples / examples whose references have it), which is 0 where all have it: in a set of one
    example, or of equal references.
    """
    if attainable.get("CIDEr", 1.0) > 0:
        return None
    return (
        "CIDEr is 0 whatever is predicted: all references of the set hold the same words, as those of a set of one example do; "
        "score more examples, or look at the other metrics"
    )
