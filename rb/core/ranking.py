"""Ranks of right answers among candidates by their similarity. Pure functions of arrays; no model, no files.

Ties count as the worst rank: where a wrong candidate is as similar as the right one, the wrong one comes first, so equal vectors find nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ITC, ITM = "itc", "itm"  # who ranked
CLASS, TEXT, SOURCE = "class", "text", "source"  # what was looked for: an example's class, its text; a text's example


def ranks(similarity: NDArray[np.floating], right: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each row the rank, from 0, of its best right column: how many wrong columns are at least as similar.

    Args:
        similarity: [N, M]; ``right``: [N, M], at least one in each row.

    Raises:
        ValueError: a row without a right column, or a similarity that is not a number.
    """
    if similarity.shape != right.shape or not right.any(1).all():
        raise ValueError(
            f"similarities {similarity.shape}: each row needs one right column, in a table of the same shape"
        )
    if np.isnan(similarity).any():
        raise ValueError(
            "similarities: some are not numbers, so nothing can be ranked: parameters or inputs are not finite"
        )
    best = np.where(right, similarity, -np.inf).max(1, keepdims=True)
    return ((similarity >= best) & ~right).sum(1)


def candidates(similarity: NDArray[np.floating], right: NDArray[np.bool_], most: int) -> NDArray[np.int64]:
    """The ``most`` most similar columns of each row, [N, min(most, M)], the best first; a right one comes behind wrong ones that are as similar."""
    most = min(most, similarity.shape[1])
    orders = (np.lexsort((own, -row))[:most] for row, own in zip(similarity, right, strict=True))
    return np.array(list(orders), dtype=np.int64).reshape(len(similarity), most)


def reranked(
    before: NDArray[np.int64], chosen: NDArray[np.int64], scores: NDArray[np.floating], right: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Ranks after the candidates were scored again; a row whose right columns are not among its candidates keeps its rank.

    Args:
        before: [N], of ``ranks``.
        chosen: [N, K], of ``candidates``; ``scores``: [N, K], larger is better.
        right: [N, M].
    """
    among = np.take_along_axis(right, chosen, axis=1)
    found = among.any(1)
    after = before.copy()
    after[found] = ranks(scores[found], among[found])
    return after
