"""Scenes of ScanNet as the scripts of ScanRefer, VoteNet and mmdetection3d leave them: ``.npy`` files to a scene.

| layout | points | boxes (centre, sizes, NYU40 class) |
|---|---|---|
| scanrefer | ``ID_aligned_vert.npy`` [N, 9] | ``ID_aligned_bbox.npy`` [K, 8], with the objectId |
| votenet | ``ID_vert.npy`` [N, 6], aligned | ``ID_bbox.npy`` [K, 7] |
| mmdetection3d | ``ID_vert.npy`` [N, 6], as scanned, and ``ID_axis_align_matrix.npy`` | ``ID_aligned_bbox.npy`` [K, 7] |

VoteNet's and mmdetection3d's boxes have no objectId, and only those of 18 classes are there, in the objects' order. ``ID_ins_label.npy``
(objectId + 1 of each point, 0: none) and ``ID_sem_label.npy`` (NYU40 class) say whose they are; an object of another class gets the hull of
its own points, which is the same box where the script kept all vertices.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rb.data.prepare.clouds import MAX_BYTES, parse_npy, parse_npy_labels
from rb.data.prepare.common import Reason, RejectedError, read_file
from rb.data.prepare.scenes import DESCRIBED_CLASSES, Scene, SceneOptions, aligned, cloud_of_scene, extents, thinned

HULLS = "objects of classes that the files have no box for, with the box of their points"
_TOLERANCE = 1e-3  # metres by which float32 points may leave their box


def read_scanrefer_scene(folder: Path, scene_id: str, options: SceneOptions) -> Scene:
    """A scene of the layout ``scanrefer``.

    Raises:
        RejectedError: not aligned, a file is missing or unreadable, points that cannot be used.
    """
    files = {kind: folder / f"{scene_id}_aligned_{kind}.npy" for kind in ("vert", "bbox")}
    for kind, path in files.items():
        if not path.is_file() and (folder / f"{scene_id}_{kind}.npy").is_file():
            raise RejectedError(
                Reason.SCENE_NOT_ALIGNED,
                f"{path} is missing, there is only {scene_id}_{kind}.npy; prepare the scene with its axisAlignment",
            )
    vertices = _floats(files["vert"], 9, Reason.POINTS_MISSING, Reason.POINTS_UNREADABLE)
    points = cloud_of_scene(vertices, str(files["vert"]), options)
    boxes: dict[str, list[float]] = {}
    for row in _box_rows(files["bbox"], 8):
        if not np.isfinite(row[7]) or row[7] != int(row[7]) or str(int(row[7])) in boxes:
            raise RejectedError(
                Reason.BOXES_UNREADABLE, f"{files['bbox']}: objectId {row[7]} is no whole number, or comes twice"
            )
        boxes[str(int(row[7]))] = _corners(row)
    return Scene(thinned(points, scene_id, options.max_points, boxes), boxes)


def read_votenet_scene(folder: Path, scene_id: str, options: SceneOptions) -> Scene:
    """A scene of the layout ``votenet``; errors as of `read_scanrefer_scene`."""
    return _labelled_scene(folder, scene_id, options, "bbox", None)


def read_mmdetection3d_scene(folder: Path, scene_id: str, options: SceneOptions) -> Scene:
    """A scene of the layout ``mmdetection3d``; errors as of `read_scanrefer_scene`."""
    path = folder / f"{scene_id}_axis_align_matrix.npy"
    matrix = _floats(path, 4, Reason.SCENE_NOT_ALIGNED, Reason.SCENE_NOT_ALIGNED)
    return _labelled_scene(folder, scene_id, options, "aligned_bbox", matrix)


def has_boxes(path: Path) -> bool:
    """Whether ``path`` is a file of boxes with a box in it: the scripts leave an empty one, or none, for a test scene."""
    try:
        return len(parse_npy(_bytes(path, "", ""), (7, 8))) > 0
    except (RejectedError, ValueError):
        return False


def _labelled_scene(
    folder: Path, scene_id: str, options: SceneOptions, boxes_file: str, matrix: NDArray[Any] | None
) -> Scene:
    path, boxes_path = folder / f"{scene_id}_vert.npy", folder / f"{scene_id}_{boxes_file}.npy"
    vertices = np.array(_floats(path, 6, Reason.POINTS_MISSING, Reason.POINTS_UNREADABLE))
    if matrix is not None:
        vertices[:, :3] = aligned(vertices[:, :3], matrix, str(folder / f"{scene_id}_axis_align_matrix.npy"))
    points = cloud_of_scene(vertices, str(path), options)
    rows = _box_rows(boxes_path, 7)
    owners, classes = (_labels(folder / f"{scene_id}_{kind}_label.npy", len(points)) for kind in ("ins", "sem"))
    boxes: dict[str, list[float]] = {}
    left_out: dict[str, str] = {}
    hulls = extents(points, owners - 1)
    place = 0  # the next row that can be an object's: rows are in the objects' order, without those of other classes
    for object_id, hull in hulls.items():
        kind = int(np.bincount(classes[owners == object_id + 1]).argmax())
        own = next((i for i in range(place, len(rows)) if rows[i, 6] == kind and _holds(_corners(rows[i]), hull)), None)
        if kind not in DESCRIBED_CLASSES:
            left_out[str(object_id)] = f"NYU40 class {kind}"
        elif own is None:
            boxes[str(object_id)] = hull
        else:
            boxes[str(object_id)], place = _corners(rows[own]), own + 1
            rows[own, 6] = -1
    lost = int((rows[:, 6] >= 0).sum())
    if 2 * lost > len(rows):
        raise RejectedError(
            Reason.SCENE_NOT_ALIGNED,
            f"{boxes_path}: {lost} of {len(rows)} boxes belong to no object of {scene_id}_ins_label.npy, so boxes and points are not in the "
            "same coordinate frame, or of two preparations; prepare the scene again",
        )
    made = len(boxes) - (len(rows) - lost)
    return Scene(
        thinned(points, scene_id, options.max_points, boxes), boxes, left_out, Counter({HULLS: made}) if made else {}
    )


def _corners(row: NDArray[np.float64]) -> list[float]:
    """Centre and sizes as min xyz, max xyz."""
    return [*(row[:3] - row[3:6] / 2).tolist(), *(row[:3] + row[3:6] / 2).tolist()]


def _holds(box: list[float], hull: list[float]) -> bool:
    return all(a - _TOLERANCE <= b for a, b in zip(box[:3], hull[:3], strict=True)) and all(
        b <= a + _TOLERANCE for a, b in zip(box[3:], hull[3:], strict=True)
    )


def _box_rows(path: Path, columns: int) -> NDArray[np.float64]:
    return np.array(_floats(path, columns, Reason.BOXES_MISSING, Reason.BOXES_UNREADABLE), dtype=np.float64)


def _floats(path: Path, columns: int, missing: str, unreadable: str) -> NDArray[Any]:
    try:
        return parse_npy(_bytes(path, missing, unreadable), (columns,))
    except ValueError as error:
        raise RejectedError(unreadable, f"{path}: {error}") from None


def _labels(path: Path, count: int) -> NDArray[np.int64]:
    try:
        return parse_npy_labels(_bytes(path, Reason.BOXES_MISSING, Reason.BOXES_UNREADABLE), count)
    except ValueError as error:
        raise RejectedError(Reason.BOXES_UNREADABLE, f"{path}: {error}") from None


def _bytes(path: Path, missing: str, unreadable: str) -> bytes:
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise RejectedError(unreadable, f"{path}: more than {MAX_BYTES:,} bytes")
    return read_file(path, missing)
