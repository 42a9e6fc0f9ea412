"""Draws of points that leave every box at least one: a region without points would be asked about as empty air."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rb.core.boxes import inside_box
from rb.core.seeding import generator


def with_boxes(
    choice: NDArray[np.int64],
    points: NDArray[np.floating],
    boxes: Sequence[Sequence[float]],
    key: tuple[object, ...],
    same_size: bool = False,
) -> NDArray[np.int64]:
    """``choice`` of ``points`` [N, 3 or more], with a point for every box that has points but none that is chosen.

    A draw of 8,192 out of 200,000 points misses a region of 20 points in 43 % of all cases. Such a point takes the place of one that lies in no box;
    where there is none, it comes in addition. A choice that misses no box stays as it is.

    Args:
        choice: numbers of points.
        boxes: min xyz, max xyz.
        key: of the draws.
        same_size: keep the number of points: where every point lies in a box, one goes whose boxes have another. More boxes than points
            cannot all have one.

    Returns:
        Numbers of points, ascending where anything was changed.
    """
    wanted = [box for box in boxes if not inside_box(points[choice], box).any()]
    found = [inside for box in wanted if (inside := np.flatnonzero(inside_box(points, box))).size]
    if not found:
        return choice
    draws = generator("point of the region", *key)
    kept = choice.copy()
    free = np.flatnonzero(~np.any([inside_box(points[choice], box) for box in boxes], axis=0))
    for inside in found:
        if same_size and np.isin(inside, kept).any():
            continue  # a point of an earlier box lies in this one too
        chosen = inside[draws.integers(inside.size)]
        if same_size and not free.size:
            free = _spare(points[kept], boxes)
            if not free.size:
                continue
        if free.size:
            place = draws.integers(free.size)
            kept[free[place]] = chosen
            free = np.delete(free, place)
        else:
            kept = np.append(kept, chosen)
    return np.unique(kept)


def _spare(points: NDArray[np.floating], boxes: Sequence[Sequence[float]]) -> NDArray[np.int64]:
    """Places of ``points`` that can all go and leave a point in every box that has one."""
    held = [inside[0] for box in boxes if (inside := np.flatnonzero(inside_box(points, box))).size]
    return np.setdiff1d(np.arange(len(points)), held)
