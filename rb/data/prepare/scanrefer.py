"""ScanRefer's descriptions on ScanNet's scenes to shards of point-cloud regions.

One record per scene, stored once with all its described objects. Points and boxes (min xyz, max xyz) are in the axis-aligned scene's
metres; the cloud's frame is made when a sample is read. Source ids are ``scannet/<scene id>``, object ids ScanNet's objectId (from 0).
Scenes are read by `scannet_layouts.py`, whatever layout their files have.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rb.core.modality import POINT_CLOUD_REGION
from rb.core.text import one_line
from rb.data.formats import ObjectAnnotation, Record
from rb.data.prepare.clouds import check_region
from rb.data.prepare.common import Conversion, Reason, RejectedError, find_raw, objects_of, read_json
from rb.data.prepare.plan import Plan, RawSet
from rb.data.prepare.raw_text import read_text
from rb.data.prepare.scannet_layouts import LAYOUTS, SCENES_LAYOUT, SceneFiles, find_scenes
from rb.data.prepare.scenes import MAX_POINTS, Scene, SceneOptions, check_aligned

NAME = "scanrefer"
SPLITS = ("train", "val", "test")
DEFAULT_MIN_POINTS = 512  # Point-BERT's number of groups
LAYOUT = f"""  RAW/ScanRefer_filtered_train.json, ScanRefer_filtered_val.json   or ScanRefer_filtered.json with ScanRefer_filtered_train.txt, ...;
                 in RAW, or in RAW/data as in ScanRefer's own repository
{SCENES_LAYOUT}"""
_PLACES = (".", "data", "ScanRefer", "data/ScanRefer")
_FIELDS = frozenset({"scene_id", "object_id", "ann_id", "description"})
_SCENE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_Json = dict[str, Any]


@dataclass(frozen=True)
class Descriptions:
    """ScanRefer's annotation files in a raw folder."""

    raw: Path

    def files(self, split: str) -> list[Path]:
        """The JSON of a split; or that of all splits, and the list of the split's scenes.

        Raises:
            ValueError: neither is there.
        """
        own, whole, scenes = (
            [f"{place}/ScanRefer_filtered{ending}" for place in _PLACES]
            for ending in (f"_{split}.json", ".json", f"_{split}.txt")
        )
        if not any((self.raw / place).is_file() for place in own) and any((self.raw / p).is_file() for p in whole):
            return [find_raw(self.raw, whole, LAYOUT), find_raw(self.raw, scenes, LAYOUT)]
        return [find_raw(self.raw, own, LAYOUT)]

    def splits(self) -> tuple[str, ...]:
        """The splits whose files are there; ``ValueError`` where there is none."""
        found = tuple(split for split in SPLITS if self._has(split))
        if not found:
            self.files(SPLITS[0])  # its error names the files
        return found

    def _has(self, split: str) -> bool:
        try:
            return bool(self.files(split))
        except ValueError:
            return False

    def rows(self, split: str, notes: Counter[str]) -> list[_Json]:
        """The rows of a split, unchecked. ``ValueError`` where there is none."""
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        file, *lists = self.files(split)
        rows = objects_of(read_json(file, _FIELDS, notes), str(file))
        if lists:
            scenes = set(read_text(lists[0], notes).split())
            rows = [row for row in rows if row.get("scene_id") in scenes]
        if not rows:
            listed = f" of the scenes in {lists[0]}" if lists else ""
            raise ValueError(f"{file}: holds no description{listed}")
        return rows


def require_objects(split: str, rows: Iterable[_Json], scenes: SceneFiles) -> None:
    """``ValueError`` for the test split where no scene has objects; in other splits each scene is rejected by itself."""
    if split == "test" and not any(scenes.has_objects(name) for name in scene_names(rows)):
        raise ValueError(
            f"split test: no scene in {scenes.folder} has objects, as ScanNet publishes none for its test scenes; regions need their boxes, "
            "so convert val (ScanRefer's server scores test)"
        )


def scene_names(rows: Iterable[_Json]) -> list[str]:
    """The scenes of rows that can name a file, each once."""
    names = dict.fromkeys(str(row.get("scene_id")) for row in rows)
    return [name for name in names if _SCENE.fullmatch(name)]


def open_raw(
    raw: Path,
    scenes: Path | None = None,
    layout: str | None = None,
    colours: bool = False,
    min_points: int = DEFAULT_MIN_POINTS,
    max_points: int = MAX_POINTS,
) -> RawSet:
    """ScanRefer's files and the scenes. An item is a description.

    Args:
        scenes: the folder of the scenes' files, if it is none of the usual ones.
        layout: one of `LAYOUTS`, if not the first that is there.
        colours: store [N, 6] with colours in [0, 1] instead of [N, 3].
        min_points: scenes of fewer points are rejected.
        max_points: points to keep of a scene; 0 keeps all.

    Raises:
        ValueError: a raw file is missing.
    """
    options = scene_options(colours, min_points, max_points)
    texts = Descriptions(raw)
    splits = texts.splits()
    found = find_scenes(raw, scenes, layout, LAYOUT)

    def plan(split: str) -> Plan:
        notes: Counter[str] = Counter()
        rows = texts.rows(split, notes)
        require_objects(split, rows, found)
        return Plan(
            NAME,
            POINT_CLOUD_REGION,
            split,
            "descriptions",
            collect=lambda conversion: list(by_scene(conversion, rows).items()),
            read=lambda item: read_scene(found, item[0], options),
            write=lambda conversion, item, scene: _write(conversion, item[0], item[1], scene, split),
            notes=notes,
        )

    files = [file for split in splits for file in texts.files(split)]
    return RawSet(
        with_objects(splits, texts, found), [*files, *found.files], plan, f"scenes: {found.layout}, in {found.folder}"
    )


def with_objects(splits: tuple[str, ...], texts: Descriptions, scenes: SceneFiles) -> tuple[str, ...]:
    """The splits of which ``--split all`` makes folders: not ``test`` where no scene of it has objects."""
    if "test" in splits and not any(scenes.has_objects(name) for name in scene_names(texts.rows("test", Counter()))):
        return tuple(split for split in splits if split != "test")
    return splits


def scene_options(colours: bool, min_points: int, max_points: int) -> SceneOptions:
    """The options of every scene, checked."""
    if min_points < 1:
        raise ValueError(f"min_points must be at least 1, got {min_points}")
    if max_points and max_points < min_points:
        raise ValueError(f"max_points must be 0 (all) or at least min_points {min_points}, got {max_points}")
    return SceneOptions(colours, min_points, max_points)


def read_scene(scenes: SceneFiles, scene_id: str, options: SceneOptions) -> Scene:
    """A scene whose boxes and points fit each other.

    Raises:
        RejectedError: it cannot be used, or has no objects.
    """
    scene = scenes.read(scene_id, options)
    if not scene.boxes:
        raise RejectedError(
            Reason.BOXES_MISSING,
            f"{scene_id}: has no objects, as ScanNet's test scenes (layout {scenes.layout}, {scenes.folder})",
        )
    check_aligned(scene.points, scene.boxes, f"{scenes.folder}, {scene_id}")
    return scene


def by_scene(conversion: Conversion, rows: list[_Json]) -> dict[str, list[_Json]]:
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


def box_of(scene: Scene, row: _Json) -> list[float]:
    """The box of the object that ``row`` describes."""
    box = scene.boxes.get(row["object_id"])
    if box is None:
        kind = scene.left_out.get(row["object_id"])
        why = (
            f"the object is {kind}; as in ScanRefer's preparation, walls, floors, ceilings and objects without a class have no box"
            if kind
            else f"the scene has no such object among its {len(scene.boxes)} boxes"
        )
        raise RejectedError(Reason.UNKNOWN_OBJECT, f"{row['where']}: {why}")
    check_region(scene.points, box, row["where"])
    return box


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
            box = box_of(scene, row)
            texts = conversion.captions(source, [row["description"]], row["object_id"])
        except RejectedError as error:
            conversion.reject(source, error.reason, error.detail, row["object_id"])
            continue
        objects.setdefault(row["object_id"], ObjectAnnotation(row["object_id"], box, [])).captions.extend(texts)
        used += 1
    if isinstance(scene, RejectedError) or not objects:
        return
    record = Record(source, NAME, split, 0, 0, [], list(objects.values()))
    if conversion.write(record, encode_points(scene.points), EXTENSION, used, used):
        conversion.tally.notes.update(scene.notes)
        conversion.tally.notes["scenes"] += 1
        conversion.tally.notes["objects"] += len(objects)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``rb prepare scanrefer``."""
    parser.add_argument(
        "--scenes", type=Path, help="the folder of the scenes' files (default: the first of the folders above)"
    )
    parser.add_argument(
        "--layout", choices=tuple(LAYOUTS), help="the scenes' layout (default: the first above that is there)"
    )
    parser.add_argument("--colours", action="store_true", help="store colours too, for an encoder of 6 channels")
    less = f"reject scenes of fewer points (default: {DEFAULT_MIN_POINTS:,})"
    parser.add_argument("--min-points", type=int, default=DEFAULT_MIN_POINTS, help=less)
    most = f"points to keep of a larger scene, the same ones each time; 0 keeps all (default: {MAX_POINTS:,}, as ScanRefer's script)"
    parser.add_argument("--max-points", type=int, default=MAX_POINTS, help=most)
