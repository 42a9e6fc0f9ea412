"""VQAv2 accuracy against figures of the three public implementations on 400 made questions (tests/golden/vqa_accuracy.json)."""

from __future__ import annotations

from pathlib import Path

import pytest

from rb.core import strict_json
from rb.evaluation.vqa import MODES, normalise, vqa_accuracy, without_punctuation

GOLDEN = strict_json.read(Path(__file__).parents[1] / "golden" / "vqa_accuracy.json")


def test_normalised_texts_are_the_public_ones():
    for row in GOLDEN["normalised"]:
        assert normalise(row["text"]) == row["official"] == row["lavis"] == row["lmms_eval"]
        assert without_punctuation(row["text"]) == row["lavis_answer"]


@pytest.mark.parametrize("mode", MODES)
def test_accuracy_is_equal_to_the_digit(mode):
    found = [vqa_accuracy(case["prediction"], case["answers"], mode) for case in GOLDEN["cases"]]
    assert found == [case["accuracy"][mode] for case in GOLDEN["cases"]]
    assert 100 * sum(found) / len(found) == GOLDEN["mean"][mode]
