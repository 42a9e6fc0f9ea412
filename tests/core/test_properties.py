"""Laws that boxes, schedules, captions and strict JSON keep for any input, searched by hypothesis."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rb.core import boxes
from rb.core.schedules import SCHEDULES
from rb.core.strict_json import FormatError, dumps, parse
from rb.core.text import MAX_WORDS, clean_caption, one_line

numbers = st.floats(-1e4, 1e4, allow_nan=False)
sides = st.floats(1e-2, 1e4)
image_boxes = st.builds(lambda x, y, w, h: [x, y, x + w, y + h], numbers, numbers, sides, sides)
cloud_boxes = st.builds(
    lambda low, extent: [*low, *(a + b for a, b in zip(low, extent, strict=True))],
    st.tuples(*[numbers] * 3),
    st.tuples(*[sides] * 3),
)
angles = st.floats(-math.pi, math.pi)


@given(image_boxes, sides, sides)
def test_a_clipped_box_lies_in_the_image_and_stays_so(box: list[float], width: float, height: float) -> None:
    clipped = boxes.clip_xyxy(box, width, height)
    assert 0 <= min(clipped[0], clipped[2]) <= max(clipped[0], clipped[2]) <= width
    assert 0 <= min(clipped[1], clipped[3]) <= max(clipped[1], clipped[3]) <= height
    assert boxes.clip_xyxy(clipped, width, height) == clipped


@given(st.lists(st.floats(-1e6, 1e6) | st.just(math.nan) | st.just(math.inf), max_size=5), sides, sides)
def test_a_box_without_a_problem_is_a_usable_one(box: list[float], width: float, height: float) -> None:
    if boxes.image_box_problem(box, width, height) is None:
        x1, y1, x2, y2 = boxes.normalise_image_box(box, width, height)
        assert 0 <= x1 < x2 <= 1
        assert 0 <= y1 < y2 <= 1


@given(cloud_boxes)
def test_the_corners_of_a_cloud_box_span_it(box: list[float]) -> None:
    assert boxes.cloud_box_problem(box) is None
    corners = boxes.cloud_box_corners(box)
    assert len(np.unique(corners, axis=0)) == 8
    assert [*corners.min(0), *corners.max(0)] == box


@given(cloud_boxes, angles, st.tuples(numbers, numbers, numbers), st.tuples(*[st.floats(0, 1)] * 3))
def test_a_box_moves_with_its_points(
    box: list[float], angle: float, offset: tuple[float, ...], place: tuple[float, ...]
) -> None:
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    moved = boxes.transform_cloud_box(box, turn, np.array(offset))
    low, high = np.array(box[:3]), np.array(box[3:])
    point = turn @ (low + np.array(place) * (high - low)) + offset
    slack = 1e-9 * (1 + np.abs(point).max())
    assert (point >= np.array(moved[:3]) - slack).all()
    assert (point <= np.array(moved[3:]) + slack).all()


@given(cloud_boxes)
def test_released_corners_keep_the_centre_and_the_extents(box: list[float]) -> None:
    corners = np.array(boxes.released_corners(box)).reshape(8, 3)
    low, high = np.array(box[:3]), np.array(box[3:])
    slack = 1e-9 * (1 + np.abs(corners).max())
    np.testing.assert_allclose(corners.mean(0), (low + high) / 2, atol=slack)
    np.testing.assert_allclose(np.ptp(corners, axis=0), (high - low)[[0, 2, 1]], atol=slack)


@pytest.mark.parametrize("kind", SCHEDULES)
@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=6), seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_an_order_gives_every_modality_its_steps(kind: str, counts: list[int], seed: int, epoch: int) -> None:
    order = SCHEDULES[kind](counts, seed, epoch)
    assert order.dtype == np.uint8
    assert np.bincount(order, minlength=len(counts)).tolist() == counts
    assert (SCHEDULES[kind](counts, seed, epoch) == order).all()


@given(st.text())
def test_a_clean_caption_is_one_line_lower_case_and_clean_already(text: str) -> None:
    clean = clean_caption(text)
    assert clean_caption(clean) == clean
    assert one_line(clean) == clean
    assert len(clean.splitlines()) <= 1
    assert len(clean.split()) <= MAX_WORDS
    assert not set(clean) & set('.!"()*#:;~')


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
def test_strict_json_reads_back_what_it_writes(value: object) -> None:
    line = dumps(value)
    assert line.isascii()
    assert "\n" not in line
    assert parse(line.encode(), "here") == value


@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_strict_json_reads_json_or_says_where(data: bytes) -> None:
    try:
        value, problem = parse(data, "this file"), ""
    except FormatError as error:
        value, problem = None, str(error)
    assert problem.startswith("this file: ") or value == json.loads(data.decode())
