"""Pure box geometry in two and three dimensions. No files, no model.

Conventions: image boxes are ``x1 y1 x2 y2`` in pixels, floats, x2 and y2 exclusive; cloud boxes are ``min xyz, max xyz`` in the cloud's
units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Annotation tools round; a box may lean over the image by this many pixels before it counts as wrong.
EDGE_TOLERANCE = 1.0
# The released code's order of corners: which side of the centre each lies on, along x, y and z.
RELEASED_CORNER_SIGNS = np.array(
    [[1, 1, 1], [1, 1, -1], [-1, 1, -1], [-1, 1, 1], [1, -1, 1], [1, -1, -1], [-1, -1, -1], [-1, -1, 1]]
)


def xywh_to_xyxy(box: Sequence[float]) -> list[float]:
    """COCO's [x, y, width, height] as [x1, y1, x2, y2]."""
    x, y, width, height = (float(v) for v in box)
    return [x, y, x + width, y + height]


def clip_xyxy(box: Sequence[float], width: float, height: float) -> list[float]:
    """``box`` cut to the image."""
    x1, y1, x2, y2 = box
    if 0.0 <= x1 < x2 <= width and 0.0 <= y1 < y2 <= height:  # nearly all boxes
        return [x1, y1, x2, y2]
    return [min(max(x1, 0.0), width), min(max(y1, 0.0), height), min(max(x2, 0.0), width), min(max(y2, 0.0), height)]


def mirror_xyxy(box: Sequence[float], width: float) -> list[float]:
    """``box`` in the image mirrored from left to right."""
    x1, y1, x2, y2 = box
    return [width - x2, y1, width - x1, y2]


def iou_xyxy(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two image boxes, 0 to 1."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def image_box_problem(box: Sequence[float], width: float, height: float) -> str | None:
    """Why ``box`` cannot be used in an image of this size: ``"box_empty"``, ``"box_outside_image"``, or none if it can."""
    if len(box) == 4 and 0.0 <= box[0] < box[2] <= width and 0.0 <= box[1] < box[3] <= height:  # nearly all boxes
        return None
    if len(box) != 4 or not all(math.isfinite(v) for v in box):
        return "box_empty"
    x1, y1, x2, y2 = box
    if x2 - x1 <= 0 or y2 - y1 <= 0:
        return "box_empty"
    tolerance = EDGE_TOLERANCE
    if x1 < -tolerance or y1 < -tolerance or x2 > width + tolerance or y2 > height + tolerance:
        return "box_outside_image"
    x1, y1, x2, y2 = clip_xyxy(box, width, height)
    return "box_empty" if x2 - x1 <= 0 or y2 - y1 <= 0 else None


def normalise_image_box(box: Sequence[float], width: float, height: float, whole_pixels: bool = False) -> list[float]:
    """Pixels to [0, 1], clipped to the image (the model's form of an image box); ``whole_pixels`` cuts fractions off (``model.box2d``)."""
    x1, y1, x2, y2 = clip_xyxy(box, width, height)
    if whole_pixels:
        x1, y1, x2, y2 = (math.trunc(v) for v in (x1, y1, x2, y2))
    return [x1 / width, y1 / height, x2 / width, y2 / height]


def cloud_box_problem(box: Sequence[float]) -> str | None:
    """Why a cloud box cannot be used: ``"box_empty"`` for wrong length, non-finite numbers or no volume; none if it can."""
    if len(box) != 6 or not all(math.isfinite(v) for v in box):
        return "box_empty"
    return "box_empty" if any(high <= low for low, high in zip(box[:3], box[3:], strict=True)) else None


def inside_box(points: NDArray[np.floating], box: Sequence[float]) -> NDArray[np.bool_]:
    """Which of ``points`` [N, 3 or more] lie in a cloud box, its faces included: [N]."""
    low, high = np.asarray(box[:3], dtype=np.float64), np.asarray(box[3:], dtype=np.float64)
    xyz = points[:, :3]
    return np.all((xyz >= low) & (xyz <= high), axis=1)


def points_in_box(points: NDArray[np.floating], box: Sequence[float]) -> int:
    """How many of ``points`` [N, 3 or more] lie in a cloud box, its faces included."""
    return int(inside_box(points, box).sum())


# [8, 3]: which number of a box is each coordinate of its corners.
_CORNERS = np.array([[axis + 3 * ((i >> axis) & 1) for axis in range(3)] for i in range(8)])


def cloud_box_corners(box: Sequence[float]) -> NDArray[np.float64]:
    """[min xyz, max xyz] as its eight corners [8, 3]."""
    return np.asarray(box, dtype=np.float64)[_CORNERS]


def transform_cloud_box(
    box: Sequence[float], matrix: NDArray[np.floating], offset: NDArray[np.floating]
) -> list[float]:
    """The axis-aligned hull of ``box`` after x -> matrix @ x + offset ([3, 3] and [3])."""
    return transform_cloud_boxes([box], matrix, offset)[0]


def transform_cloud_boxes(
    boxes: Sequence[Sequence[float]], matrix: NDArray[np.floating], offset: NDArray[np.floating]
) -> list[list[float]]:
    """``transform_cloud_box`` of each."""
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 6)[:, _CORNERS]
    moved = corners @ np.asarray(matrix, dtype=np.float64).T + np.asarray(offset, dtype=np.float64)
    return np.concatenate([moved.min(1), moved.max(1)], axis=1).tolist()


def frame_to_unit(box: Sequence[float]) -> list[float]:
    """A box in the cloud's frame (about [-1, 1]) to the model's numbers, (v + 1) / 2."""
    return [(v + 1.0) / 2.0 for v in box]


def released_corners(box: Sequence[float]) -> list[float]:
    """[min xyz, max xyz] as the released code's 24 numbers: eight corners one after another, in the box's own units.

    Its corners exchange the extents of y and z (a camera's axes on an aligned scene), so they are the box's own only where these are equal;
    kept as they are, because released weights were trained on them.
    """
    low, high = np.asarray(box[:3], dtype=np.float64), np.asarray(box[3:], dtype=np.float64)
    half = ((high - low) / 2)[[0, 2, 1]]
    return ((low + high) / 2 + RELEASED_CORNER_SIGNS * half).ravel().tolist()
