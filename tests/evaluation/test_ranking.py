"""Scores of rankings from ranks, and what drawing lots gives, against values worked out by hand."""

from __future__ import annotations

import pytest

from rb.core.strict_json import FormatError
from rb.data.predictions import Prediction
from rb.evaluation.ranking import score_classes, score_retrieval


def row(number: int, references: list[str], ranks: dict[str, dict[str, list[int]]] | None) -> Prediction:
    return Prediction(f"s/{number}", f"s/{number}", None, "point_cloud", "s", "test", "", references, None, ranks=ranks)


def test_classes() -> None:
    ranks = {"chair": (0, 0, 4), "bed": (7,)}
    rows = [
        row(10 * i + k, [name], {"itc": {"class": [r]}})
        for i, name in enumerate(ranks)
        for k, r in enumerate(ranks[name])
    ]
    found = score_classes(rows, 10)
    assert found.scores == {"itc": {"top1": 0.5, "top5": 0.75, "class_mean": pytest.approx(1 / 3)}}
    assert found.chance == {"top1": 0.1, "top5": 0.5, "class_mean": 0.1}


def test_retrieval_both_ways_with_several_captions() -> None:
    rows = [
        row(
            0, ["A cup.", "a red cup"], {"itc": {"text": [0], "source": [1, 0]}, "itm": {"text": [0], "source": [0, 0]}}
        ),
        row(1, ["a cup"], {"itc": {"text": [5], "source": [1]}, "itm": {"text": [0], "source": [0]}}),
    ]
    found = score_retrieval(rows)
    assert found.scores["itc"]["text_R1"] == 0.5
    assert found.scores["itc"]["source_R1"] == pytest.approx(1 / 3)
    assert found.scores["itc"]["source_R5"] == found.scores["itm"]["text_R1"] == found.scores["itm"]["source_R1"] == 1.0
    # Two texts: one is right for both examples, the other for one.
    assert found.chance["text_R1"] == pytest.approx((1 + 0.5) / 2)
    assert found.chance["source_R1"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert found.chance["text_R5"] == 1.0


def test_rows_of_another_task_are_refused() -> None:
    for ranks in (None, {"itc": {"text": [0]}}, {"itc": {"text": [0], "source": [0, 1]}}):
        with pytest.raises(FormatError, match="predict it with --task retrieval"):
            score_retrieval([row(0, ["a cup"], ranks)])
    with pytest.raises(FormatError, match="predict it with --task zeroshot"):
        score_classes([row(0, ["a cup"], {"itc": {"text": [0]}})], 3)
