"""Ranks of right answers, against values worked out by hand and by a slow search."""

from __future__ import annotations

import numpy as np
import pytest

from rb.core.ranking import candidates, ranks, reranked


def test_ties_count_as_the_worst_rank() -> None:
    right = np.array([[True, False, False]])
    assert ranks(np.array([[0.5, 0.5, 0.5]]), right) == [2]
    assert ranks(np.array([[0.5, 0.4, 0.5]]), right) == [1]
    assert ranks(np.array([[0.5, 0.4, 0.3]]), right) == [0]


def test_ranks_agree_with_a_search() -> None:
    draw = np.random.default_rng(0)
    similarity = draw.integers(0, 9, (40, 12)).astype(float)
    right = draw.random((40, 12)) < 0.2
    right[np.arange(40), draw.integers(0, 12, 40)] = True
    slow = [
        min(sum(row[j] >= row[k] for j in range(12) if not own[j]) for k in range(12) if own[k])
        for row, own in zip(similarity, right, strict=True)
    ]
    assert ranks(similarity, right).tolist() == slow


def test_what_cannot_be_ranked_is_refused() -> None:
    with pytest.raises(ValueError, match="each row needs one right column"):
        ranks(np.zeros((1, 2)), np.zeros((1, 2), dtype=bool))
    with pytest.raises(ValueError, match="not numbers"):
        ranks(np.array([[np.nan, 1.0]]), np.array([[True, False]]))


def test_candidates_are_the_best_and_of_equals_the_wrong_ones() -> None:
    similarity, right = np.array([[0.5, 0.9, 0.5, 0.1]]), np.array([[True, False, False, False]])
    assert candidates(similarity, right, 2).tolist() == [[1, 2]]
    assert candidates(similarity, right, 9).tolist() == [[1, 2, 0, 3]]


def test_a_right_answer_among_the_candidates_is_ranked_again_and_no_other() -> None:
    similarity = np.array([[0.5, 0.9, 0.7, 0.1], [0.1, 0.9, 0.7, 0.5]])
    right = np.array([[True, False, False, False]] * 2)
    before, chosen = ranks(similarity, right), candidates(similarity, right, 3)
    assert before.tolist() == [2, 3]
    assert reranked(before, chosen, np.array([[1.0, 2.0, 3.0], [9.0, 9.0, 9.0]]), right).tolist() == [0, 3]
    assert reranked(before, chosen, np.array([[3.0, 2.0, 3.0], [9.0, 9.0, 9.0]]), right).tolist() == [1, 3]
