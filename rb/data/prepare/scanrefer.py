"""ScanRefer's descriptions on its prepared ScanNet scenes to shards of point-cloud regions.

One record per scene, stored once with all its described objects. Points and boxes (min xyz, max xyz) are in the axis-aligned scene's
metres; the cloud's frame is made when a sample is read. Only aligned files are used: boxes of a scene that is not aligned are not
comparable. Source ids are ``scannet/<scene id>``, object ids ScanNet's objectId (from 0).
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rb.core.boxes import cloud_box_problem, points_in_box
from rb.core.modality import POINT_CLOUD_REGION
from rb.core.text import one_line
from rb.data.formats import ObjectAnnotation, Record
from rb.data.prepare.clouds import MAX_BYTES, parse_npy, usable_cloud
from rb.data.prepare.common import (
    Conversion,
    Reason,
    RejectedError,
    find_raw,
    objects_of,
    read_file,
    read_json,
    require_raw,
)
from rb.data.prepare.plan import Plan, RawSet

NAME = "scanrefer"
SPLITS = ("train", "val", "test")
DEFAULT_MIN_POINTS = 512  # Point-BERT's number of groups
LAYOUT = """  RAW/ScanRefer_filtered_train.json, ScanRefer_filtered_val.json   or in RAW/data, as in ScanRefer's own repository
  RAW/scannet_data/scene0000_00_aligned_vert.npy   float [N, 9]: x y z, r g b (0-255), normal; or RAW/data/scannet/scannet_data, --scenes DIR
  RAW/scannet_data/scene0000_00_aligned_bbox.npy   float [K, 8]: centre, sizes, nyu40 id, objectId"""
_JSON_PLACES = (".", "data", "ScanRefer", "data/ScanRefer")
_SCENE_PLACES = ("data/scannet/scannet_data", "scannet_data", "scannet/scannet_data")
_FIELDS = frozenset({"scene_id", "object_id", "ann_id", "description"})
_SCENE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_Json = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """``points`` [N, 3 | 6] float32 and the boxes by objectId, as min xyz, max xyz."""

    points: NDArray[np.float32]
    boxes: dict[str, list[float]]


def open_raw(
    raw: Path, scenes: Path | None = None, colours: bool = False, min_points: int = DEFAULT_MIN_POINTS
) -> RawSet:
    """ScanRefer's files and the folder of scenes. An item is a description.

    Args:
        scenes: the folder of the scenes' files, if not ``raw/scannet_data``.
        colours: store [N, 6] with colours in [0, 1] instead of [N, 3].
        min_points: scenes of fewer points are rejected.

    Raises:
        ValueError: a raw file is missing.
    """
    if min_points < 1:
        raise ValueError(f"min_points must be at least 1, got {min_points}")
    places = {split: [raw / place / f"ScanRefer_filtered_{split}.json" for place in _JSON_PLACES] for split in SPLITS}
    files = {split: next((path for path in paths if path.is_file()), None) for split, paths in places.items()}

    def plan(split: str) -> Plan:
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        file = find_raw(raw, [f"{place}/ScanRefer_filtered_{split}.json" for place in _JSON_PLACES], LAYOUT)
        notes: Counter[str] = Counter()
        rows = objects_of(read_json(file, _FIELDS, notes), str(file))
        if not rows:
            raise ValueError(f"{file}: holds no description")
        folder = require_raw(scenes, LAYOUT) if scenes else find_raw(raw, _SCENE_PLACES, LAYOUT)
        return Plan(
            NAME,
            POINT_CLOUD_REGION,
            split,
            "descriptions",
            collect=lambda conversion: list(_by_scene(conversion, rows).items()),
            read=lambda item: read_scene(folder, item[0], colours, min_points),
            write=lambda conversion, item, scene: _write(conversion, item[0], item[1], scene, split),
            notes=notes,
        )

    there = [path for path in files.values() if path]
    return RawSet(tuple(split for split in SPLITS if files[split]), there, plan)


def _by_scene(conversion: Conversion, rows: list[_Json]) -> dict[str, list[_Json]]:
    """The rows that name a scene, an object and a description, in the file's order."""
    by_scene: dict[str, list[_Json]] = {}
    seen: set[tuple[str, int, str]] = set()
    for number, row in enumerate(rows):
        conversion.tally.read += 1
        scene_id, object_id, ann_id = (str(row.get(name)) for name in ("scene_id", "object_id", "ann_id"))
        where = f"row {number} (scene {scene_id[:80]!r}, object {object_id[:80]!r}, ann_id {ann_id[:80]!r})"
        text = row.get("description")
        if not isinstance(text, str) or not object_id.isdecimal() or not object_id.isascii() or len(object_id) > 18:
            conversion.reject(
                f"row {number}", Reason.MALFORMED_ROW, f"{where}: needs a number object_id and a text description"
            )
            continue
        if not _SCENE.fullmatch(scene_id):
            conversion.reject(f"row {number}", Reason.UNSAFE_NAME, f"{where}: is no scene's name")
            continue
        # Rows without the annotation's id are told apart by what they say.
        known = row.get("ann_id") not in (None, "") and ann_id != "nan"
        identity = (scene_id, int(object_id), f"id {ann_id}" if known else f"text {one_line(text)}")
        if identity in seen:
            conversion.reject(
                f"scannet/{scene_id}", Reason.DUPLICATE_SOURCE, f"{where}: comes twice; the first is kept", object_id
            )
        else:
            seen.add(identity)
            by_scene.setdefault(scene_id, []).append({**row, "object_id": str(int(object_id)), "where": where})
    return by_scene


def read_scene(folder: Path, scene_id: str, colours: bool, min_points: int) -> Scene:
    """The aligned points and boxes of a scene.

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
    vertices = _read_array(files["vert"], 9, Reason.POINTS_MISSING, Reason.POINTS_UNREADABLE)
    points = usable_cloud(vertices[:, : 6 if colours else 3], str(files["vert"]), min_points)
    rows = _read_array(files["bbox"], 8, Reason.BOXES_MISSING, Reason.BOXES_UNREADABLE).astype(np.float64)
    boxes: dict[str, list[float]] = {}
    for row in rows:
        if not np.isfinite(row[7]) or row[7] != int(row[7]) or str(int(row[7])) in boxes:
            raise RejectedError(
                Reason.BOXES_UNREADABLE, f"{files['bbox']}: objectId {row[7]} is no whole number, or comes twice"
            )
        boxes[str(int(row[7]))] = [*(row[:3] - row[3:6] / 2).tolist(), *(row[:3] + row[3:6] / 2).tolist()]
    _check_aligned(points, boxes, str(files["bbox"]))
    return Scene(points, boxes)


def _read_array(path: Path, columns: int, missing: str, unreadable: str) -> NDArray[Any]:
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise RejectedError(unreadable, f"{path}: more than {MAX_BYTES:,} bytes")
    data = read_file(path, missing)
    try:
        return parse_npy(data, (columns,))
    except ValueError as error:
        raise RejectedError(unreadable, f"{path}: {error}") from None


def _box(scene: Scene, row: _Json) -> list[float]:
    """The box of the object that ``row`` describes."""
    box = scene.boxes.get(row["object_id"])
    if box is None:
        raise RejectedError(
            Reason.UNKNOWN_OBJECT, f"{row['where']}: the scene has no such object among its {len(scene.boxes)} boxes"
        )
    problem = cloud_box_problem(box)
    if problem:
        raise RejectedError(problem, f"{row['where']}: box {box} has no volume, or numbers that are not finite")
    if not points_in_box(scene.points, box):
        low, high = scene.points[:, :3].min(0), scene.points[:, :3].max(0)
        outside = (np.array(box[3:]) < low).any() or (np.array(box[:3]) > high).any()
        raise RejectedError(
            Reason.BOX_OUTSIDE_CLOUD if outside else Reason.BOX_WITHOUT_POINTS,
            f"{row['where']}: box {box} {'lies outside' if outside else 'holds none of'} the points; is it from the scene unaligned?",
        )
    return box


def _check_aligned(points: NDArray[np.float32], boxes: dict[str, list[float]], where: str) -> None:
    """``RejectedError`` where most boxes hold no point, as boxes of the unaligned scene do; the rest hold points by chance only."""
    real = [box for box in boxes.values() if cloud_box_problem(box) is None]
    without = sum(not points_in_box(points, box) for box in real)
    if without > 1 and 2 * without > len(real):
        raise RejectedError(
            Reason.SCENE_NOT_ALIGNED,
            f"{where}: {without} of {len(real)} boxes hold none of the scene's points, so boxes and points are not in the same coordinate "
            "frame; prepare both with the scene's axisAlignment",
        )


def _write(conversion: Conversion, scene_id: str, rows: list[_Json], scene: Scene | RejectedError, split: str) -> None:
    """One scene with its objects, or all its descriptions rejected for the scene's sake."""
    from rb.sources.points import EXTENSION, encode_points

    source = f"scannet/{scene_id}"
    objects: dict[str, ObjectAnnotation] = {}
    used = 0
    for row in rows:
        try:
            if isinstance(scene, RejectedError):
                raise scene
            box = _box(scene, row)
            texts = conversion.captions(source, [row["description"]], row["object_id"])
        except RejectedError as error:
            conversion.reject(source, error.reason, error.detail, row["object_id"])
            continue
        objects.setdefault(row["object_id"], ObjectAnnotation(row["object_id"], box, [])).captions.extend(texts)
        used += 1
    if isinstance(scene, RejectedError) or not objects:
        return
    record = Record(source, NAME, split, 0, 0, [], list(objects.values()))
    conversion.writer.write(record, encode_points(scene.points), EXTENSION)
    conversion.tally.notes["scenes"] += 1
    conversion.tally.notes["objects"] += len(objects)
    conversion.keep(used, used)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``rb prepare scanrefer``."""
    parser.add_argument("--scenes", type=Path, help="the folder of the scenes' files (default: RAW/scannet_data)")
    parser.add_argument("--colours", action="store_true", help="store colours too, for an encoder of 6 channels")
    less = f"reject scenes of fewer points (default: {DEFAULT_MIN_POINTS:,})"
    parser.add_argument("--min-points", type=int, default=DEFAULT_MIN_POINTS, help=less)
