"""ScanNet's own files of a scan to a scene: mesh, axis alignment, segments, objects, and the map from raw labels to NYU40's classes.

Files of scan ID, in ``FOLDER/ID`` or in ``FOLDER`` itself: ``ID_vh_clean_2.ply``, ``ID.txt`` (line ``axisAlignment = `` with 16 numbers;
test scans have none), ``ID_vh_clean_2.0.010000.segs.json`` (a segment for each vertex), ``ID.aggregation.json`` (objects as lists of
segments; ``ID_vh_clean.aggregation.json``, made for the finer mesh, is read where the first is missing). Where two objects claim a
segment, the later one has it, as in ScanNet's and ScanRefer's scripts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from rb.core.strict_json import parse_foreign
from rb.data.prepare.clouds import MAX_BYTES
from rb.data.prepare.common import Reason, RejectedError, is_id
from rb.data.prepare.raw_text import read_text
from rb.data.prepare.scenes import (
    DESCRIBED_CLASSES,
    UNALIGNED,
    Scene,
    SceneOptions,
    aligned,
    cloud_of_scene,
    extents,
    thinned,
)
from rb.data.prepare.tables import read_csv

MESH = "_vh_clean_2.ply"
SEGMENTS = "_vh_clean_2.0.010000.segs.json"
OBJECTS = (".aggregation.json", "_vh_clean.aggregation.json")
LABEL_MAP = "scannetv2-labels.combined.tsv"
_MAX_TEXT = 8 << 20  # bytes of a JSON or text file; the largest scans need 4 MB
_MAX_LISTS = 100_000  # in it, since small ones take many times their letters; a scan has some hundreds
_OBJECT_FIELDS = frozenset({"segGroups", "objectId", "segments", "label"})
_SEGMENT_FIELDS = frozenset({"segIndices"})


def read_label_map(path: Path, notes: Counter[str]) -> dict[str, int]:
    """Raw label to NYU40 class (0: none) from ``scannetv2-labels.combined.tsv``.

    Raises:
        ValueError: it is another file.
    """
    labels: dict[str, int] = {}
    for number, row in read_csv(path, notes):
        if isinstance(row, ValueError):
            raise ValueError(f"{path}, line {number}: {row}; download the file again")
        label, known = row.get("raw_category"), str(row.get("nyu40id"))
        if not isinstance(label, str) or not re.fullmatch(r"\d{0,2}", known, re.ASCII):
            raise ValueError(
                f"{path}, line {number}: needs the columns raw_category and nyu40id (a number), got {known!r:.40}; "
                f"give ScanNet's {LABEL_MAP}"
            )
        labels[label] = int(known or 0)
    if not labels:
        raise ValueError(f"{path}: holds no label; give ScanNet's {LABEL_MAP}")
    return labels


def scan_file(folder: Path, scene_id: str, ending: str) -> Path:
    """Where a scan's file is: in its own folder, as ScanNet ships it, or beside those of the other scans."""
    own = folder / scene_id / f"{scene_id}{ending}"
    return own if own.parent.is_dir() else folder / f"{scene_id}{ending}"


def read_scan(folder: Path, scene_id: str, labels: Mapping[str, int], options: SceneOptions) -> Scene:
    """The scene of a scan.

    Raises:
        RejectedError: a file is missing, unreadable, or of another scan; points that cannot be used.
        ValueError: the library that reads PLY is not installed.
    """
    mesh = scan_file(folder, scene_id, MESH)
    columns = _vertices(mesh)
    notes: Counter[str] = Counter()
    matrix = read_alignment(scan_file(folder, scene_id, ".txt"))
    if matrix is None:
        notes[UNALIGNED] = 1
    else:
        columns[:, :3] = aligned(columns[:, :3], matrix, str(scan_file(folder, scene_id, ".txt")))
    points = cloud_of_scene(columns, str(mesh), options)
    groups = read_objects(folder, scene_id)
    owners = _owners(read_segments(scan_file(folder, scene_id, SEGMENTS), len(points)), groups, notes, str(mesh))
    boxes: dict[str, list[float]] = {}
    left_out: dict[str, str] = {}
    hulls = extents(points, owners)
    for object_id, (label, _) in groups.items():
        if labels.get(label, 0) not in DESCRIBED_CLASSES:
            left_out[str(object_id)] = f"{label!r:.80}, NYU40 class {labels.get(label, 0)}"
        elif object_id in hulls:
            boxes[str(object_id)] = hulls[object_id]
    return Scene(thinned(points, scene_id, options.max_points, boxes), boxes, left_out, notes)


def _vertices(path: Path) -> NDArray[np.float32]:
    """[V, 3 | 6] of a mesh, as scanned."""
    from rb.sources.cloud_files import read_cloud  # loads torch, which parsers need not wait for
    from rb.sources.points import PointsError

    try:
        if path.stat().st_size > MAX_BYTES:
            raise PointsError(f"{path}: more than {MAX_BYTES:,} bytes; ScanNet's largest has 30 MB")
        return read_cloud(path).points
    except OSError as error:
        raise RejectedError(Reason.POINTS_MISSING, f"{path}: {error.strerror or error}") from None
    except PointsError as error:
        raise RejectedError(Reason.POINTS_UNREADABLE, str(error)) from None


def read_alignment(path: Path) -> NDArray[np.float64] | None:
    """The 4 x 4 axisAlignment in a scan's text file; none where it has no such line, as for test scans.

    Raises:
        RejectedError: the file is missing, or the line does not hold 16 numbers.
    """
    text = _text(path, Reason.SCENE_NOT_ALIGNED, Reason.SCENE_NOT_ALIGNED)
    found = {
        words.strip() for words in re.findall(r"(?:^|(?<=\r))[ \t]*axisAlignment[ \t]*=([^\r\n]*)", text, re.MULTILINE)
    }
    if not found:
        return None
    if len(found) > 1:
        raise RejectedError(Reason.SCENE_NOT_ALIGNED, f"{path}: has {len(found)} different lines of axisAlignment")
    (words,) = found
    try:
        return np.array([float(word) for word in words.split()], dtype=np.float64).reshape(4, 4)
    except ValueError:
        raise RejectedError(
            Reason.SCENE_NOT_ALIGNED, f"{path}: axisAlignment must be 16 numbers, got {words!r:.200}"
        ) from None


def read_objects(folder: Path, scene_id: str) -> dict[int, tuple[str, list[int]]]:
    """ObjectId to its raw label and segments, in the file's order."""
    paths = [scan_file(folder, scene_id, ending) for ending in OBJECTS]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise RejectedError(
            Reason.BOXES_MISSING,
            f"{paths[0]}: not found; without it a scan has no objects (ScanNet publishes none for its test scans)",
        )
    content = _json(path, _OBJECT_FIELDS, Reason.BOXES_MISSING, Reason.BOXES_UNREADABLE)
    groups: dict[int, tuple[str, list[int]]] = {}
    rows = content.get("segGroups") if isinstance(content, dict) else None
    for row in rows if isinstance(rows, list) else [rows]:
        group = row if isinstance(row, dict) else {}
        object_id: Any = group.get("objectId")
        label, segments = group.get("label"), group.get("segments")
        if not is_id(object_id) or not isinstance(label, str) or not _are_ids(segments):
            raise RejectedError(
                Reason.BOXES_UNREADABLE,
                f"{path}: must be an object whose segGroups have objectId, label and segments, got {row!r:.120}",
            )
        if object_id in groups or object_id < 0:
            raise RejectedError(Reason.BOXES_UNREADABLE, f"{path}: objectId {object_id} comes twice, or is below 0")
        groups[object_id] = (label, segments)
    return groups


def read_segments(path: Path, vertices: int) -> NDArray[np.int64]:
    """The segment of each vertex."""
    content = _json(path, _SEGMENT_FIELDS, Reason.BOXES_MISSING, Reason.BOXES_UNREADABLE)
    segments = content.get("segIndices") if isinstance(content, dict) else None
    if not _are_ids(segments) or len(segments) != vertices:
        got = f"{len(segments)} values" if isinstance(segments, list) else f"{segments!r:.80}"
        raise RejectedError(
            Reason.BOXES_UNREADABLE,
            f"{path}: segIndices must be one whole number for each of the mesh's {vertices} vertices, got {got}",
        )
    return np.array(segments, dtype=np.int64)


def _owners(
    segments: NDArray[np.int64], groups: Mapping[int, tuple[str, list[int]]], notes: Counter[str], mesh: str
) -> NDArray[np.int64]:
    """The objectId of each vertex, -1 for none."""
    ids, inverse = np.unique(segments, return_inverse=True)
    claims = {segment: object_id for object_id, (_, own) in groups.items() for segment in own}
    unknown = len(claims.keys() - set(ids.tolist()))
    if 2 * unknown > len(claims):
        raise RejectedError(
            Reason.BOXES_UNREADABLE,
            f"{mesh}: {unknown} of the {len(claims)} segments of its objects are not in the mesh; {OBJECTS[0]} and {SEGMENTS} "
            "must be of one scan and of the mesh _vh_clean_2",
        )
    if unknown:
        notes["segments of objects that are not in the mesh"] = unknown
    return np.array([claims.get(k, -1) for k in ids.tolist()], dtype=np.int64)[inverse]


def _are_ids(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(is_id(item) and 0 <= item < 2**62 for item in value)


def _json(path: Path, fields: frozenset[str], missing: str, unreadable: str) -> Any:
    text = _text(path, missing, unreadable)
    if text.count("{") + text.count("[") > _MAX_LISTS:
        raise RejectedError(unreadable, f"{path}: more than {_MAX_LISTS:,} lists and objects; this is another file")
    try:
        return parse_foreign(text, str(path), fields)
    except ValueError as error:
        raise RejectedError(unreadable, str(error)) from None


def _text(path: Path, missing: str, unreadable: str) -> str:
    try:
        if path.stat().st_size > _MAX_TEXT:
            raise RejectedError(unreadable, f"{path}: more than {_MAX_TEXT:,} bytes; this is another file")
        return read_text(path, Counter())
    except OSError as error:
        raise RejectedError(missing, f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise RejectedError(unreadable, str(error)) from None
