"""Scenes of ScanNet, whatever layout their files have: aligned points, and the box of every object by ScanNet's objectId (from 0).

A box is the axis-aligned hull of all vertices of its object in the aligned mesh, also where fewer points are kept. As in ScanRefer's own
preparation, walls, floors, ceilings and objects without a class have none. Read by `scannet_files.py` and `scannet_prepared.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rb.core import seeding
from rb.core.boxes import cloud_box_problem, points_in_box
from rb.core.point_draws import with_boxes
from rb.data.prepare.clouds import usable_cloud
from rb.data.prepare.common import Reason, RejectedError

MAX_POINTS = 50_000  # as ScanRefer's preparation keeps
# Of NYU40: without wall (1), floor (2), ceiling (22), and 0, no class.
DESCRIBED_CLASSES = frozenset({*range(3, 22), *range(23, 41)})
UNALIGNED = "scenes without an axisAlignment, in the scanner's own axes"


@dataclass(frozen=True)
class Scene:
    """One scene.

    Attributes:
        points: [N, 3 | 6] float32, aligned, in metres; colours in [0, 1].
        boxes: objectId to min xyz, max xyz.
        left_out: objectId to what it is, for objects that have no box on purpose.
        notes: what to count about this scene.
    """

    points: NDArray[np.float32]
    boxes: dict[str, list[float]]
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SceneOptions:
    """What the user asks of every scene: colours too, at least so many points, at most so many (0: all)."""

    colours: bool = False
    min_points: int = 1
    max_points: int = MAX_POINTS


def aligned(xyz: NDArray[np.floating], matrix: NDArray[np.floating], where: str) -> NDArray[np.float32]:
    """[N, 3] by a row-major 4 x 4 ``matrix``: p' = A p.

    Raises:
        RejectedError: the matrix is none that moves points.
    """
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.allclose(matrix[3], [0, 0, 0, 1], atol=1e-3):
        shown = np.array2string(matrix.ravel(), separator=" ", max_line_width=10_000, threshold=16)
        raise RejectedError(
            Reason.SCENE_NOT_ALIGNED,
            f"{where}: the axisAlignment must be 16 finite numbers whose last four are 0 0 0 1, got {shown:.300}",
        )
    with np.errstate(over="ignore", invalid="ignore"):  # numbers out of range are refused with the points
        return (xyz @ matrix[:3, :3].T.astype(np.float64) + matrix[:3, 3]).astype(np.float32)


def extents(xyz: NDArray[np.floating], owners: NDArray[np.integer]) -> dict[int, list[float]]:
    """Owner to the hull (min xyz, max xyz) of its points [N, 3 or more], for owners [N] of 0 and more."""
    order = np.argsort(owners, kind="stable")
    order = order[owners[order] >= 0]
    if not len(order):
        return {}
    ids, starts = np.unique(owners[order], return_index=True)
    points = xyz[order, :3].astype(np.float64)
    low, high = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)
    return {int(k): [*a, *b] for k, a, b in zip(ids, low.tolist(), high.tolist(), strict=True)}


def cloud_of_scene(columns: NDArray[np.floating], where: str, options: SceneOptions) -> NDArray[np.float32]:
    """All points of a scene, checked, with the columns that are asked for.

    Raises:
        RejectedError: too few points, no colours where they are asked for, and as `usable_cloud`.
    """
    if options.colours and columns.shape[1] < 6:
        raise RejectedError(Reason.COLOURS_UNCLEAR, f"{where}: has no colours; convert without --colours")
    return usable_cloud(columns[:, : 6 if options.colours else 3], where, options.min_points)


def thinned(
    points: NDArray[np.float32], scene_id: str, most: int, boxes: Mapping[str, list[float]]
) -> NDArray[np.float32]:
    """``most`` points (0: all) in their order, drawn by a key: the same ones in every preparation. No box that holds points loses all."""
    if not most or len(points) <= most:
        return points
    kept = np.sort(seeding.generator("points of a scene", scene_id).choice(len(points), most, replace=False))
    return points[with_boxes(kept, points, list(boxes.values()), (scene_id,))]


def check_aligned(points: NDArray[np.float32], boxes: dict[str, list[float]], where: str) -> None:
    """``RejectedError`` where most boxes hold no point, as boxes of the unaligned scene do; the rest hold points by chance only."""
    real = [box for box in boxes.values() if cloud_box_problem(box) is None]
    without = sum(not points_in_box(points, box) for box in real)
    if without > 1 and 2 * without > len(real):
        raise RejectedError(
            Reason.SCENE_NOT_ALIGNED,
            f"{where}: {without} of {len(real)} boxes hold none of the scene's points, so boxes and points are not in the same coordinate "
            "frame; prepare both with the scene's axisAlignment",
        )
