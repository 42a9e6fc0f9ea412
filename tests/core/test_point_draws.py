"""Draws of points that leave some in every box."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from rb.core.boxes import inside_box
from rb.core.point_draws import with_boxes
from rb.core.seeding import generator


def scene(seed: int, count: int = 2000) -> tuple[NDArray[np.float32], list[list[float]]]:
    """A floor of points, and twelve boxes above it with one to four points each, the last two boxes in one place."""
    rng = np.random.default_rng(seed)
    points = rng.uniform([0, 0, 0], [12, 12, 0.5], (count, 3)).astype(np.float32)
    boxes = [[k, 0.0, 1.0, k + 0.9, 1.0, 2.0] for k in range(11)] + [[10.0, 0.0, 1.0, 10.9, 1.0, 2.0]]
    for k in range(11):
        rows = rng.choice(np.flatnonzero(points[:, 2] < 1), 1 + k % 4, replace=False)
        points[rows] = rng.uniform([k, 0, 1], [k + 0.9, 1, 2], (len(rows), 3))
    return points, boxes


@pytest.mark.parametrize("size", [0, 5, 40, 1000])
def test_every_box_that_holds_points_keeps_one(size: int) -> None:
    for seed in range(20):
        points, boxes = scene(seed)
        empty = [50.0, 50.0, 50.0, 51.0, 51.0, 51.0]
        choice = np.sort(np.random.default_rng(seed).choice(len(points), size, replace=False))
        kept = with_boxes(choice, points, [*boxes, empty], ("scene", seed))
        assert all(inside_box(points[kept], box).any() for box in boxes)
        assert np.array_equal(np.unique(kept), kept)
        assert np.array_equal(kept, with_boxes(choice, points, [*boxes, empty], ("scene", seed)))
        if size == 1000:  # free places for all
            assert len(kept) <= size
            # Who was in a box stays, and no more is changed than must be.
            held = choice[np.any([inside_box(points[choice], box) for box in boxes], axis=0)]
            assert np.isin(held, kept).all()
            assert len(np.setdiff1d(choice, kept)) <= 12


def test_a_draw_that_misses_no_box_is_the_draw_itself() -> None:
    points, boxes = scene(0)
    held = np.flatnonzero(np.any([inside_box(points, box) for box in boxes], axis=0))
    assert with_boxes(held, points, boxes, ()) is held
    few = np.arange(5)
    assert with_boxes(few, points, [[50.0, 50.0, 50.0, 51.0, 51.0, 51.0]], ()) is few  # no point to be had
    assert with_boxes(few, points, [], ()) is few


def test_one_box_takes_the_point_and_the_place_that_it_took_before() -> None:
    """Draws of runs that are under way stay: first the point, then the place in the choice."""
    points, boxes = scene(3)
    for seed in range(30):
        choice = np.sort(np.random.default_rng(seed).choice(len(points), 60, replace=False))
        inside = np.flatnonzero(inside_box(points, boxes[7]))
        if inside_box(points[choice], boxes[7]).any():
            continue
        draws, expected = generator("point of the region", 0, seed), choice.copy()
        point = inside[draws.integers(inside.size)]
        expected[draws.integers(60)] = point
        assert np.array_equal(with_boxes(choice, points, [boxes[7]], (0, seed)), np.sort(expected))
