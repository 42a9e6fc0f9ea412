"""Which layout the files of ScanNet's scenes have, and one way to read a scene from any of them.

The layout is seen by the names of files, in the order of `LAYOUTS`; ``--layout`` chooses where several are there.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rb.data.prepare.common import find_raw
from rb.data.prepare.scannet_files import LABEL_MAP, MESH, OBJECTS, read_label_map, read_scan, scan_file
from rb.data.prepare.scannet_prepared import (
    has_boxes,
    read_mmdetection3d_scene,
    read_scanrefer_scene,
    read_votenet_scene,
)
from rb.data.prepare.scenes import Scene, SceneOptions

SCENES_LAYOUT = f"""  and the scenes, in one of these layouts (ID is scene0000_00):
  scanrefer      RAW/scannet_data/ID_aligned_vert.npy, ID_aligned_bbox.npy   as ScanRefer's own script leaves them
  scannet        RAW/scans/ID/ID_vh_clean_2.ply, ID.txt, ID.aggregation.json, ID_vh_clean_2.0.010000.segs.json   ScanNet's own files,
                 or all of them in RAW/scans; and RAW/{LABEL_MAP}
  mmdetection3d  RAW/scannet_instance_data/ID_vert.npy, ID_axis_align_matrix.npy, ID_aligned_bbox.npy, ID_ins_label.npy, ID_sem_label.npy
  votenet        RAW/scannet_train_detection_data/ID_vert.npy, ID_bbox.npy, ID_ins_label.npy, ID_sem_label.npy
  These folders may also lie in RAW/data/scannet, RAW/scannet or RAW/data, or be named by --scenes DIR."""


@dataclass(frozen=True)
class Layout:
    """A way in which scenes lie in files.

    Attributes:
        folders: names that its folder usually has.
        mark: how a file's name ends in this layout, and in none before it in `LAYOUTS`.
        boxes: how the name of the file with a scene's boxes ends.
    """

    folders: tuple[str, ...]
    mark: str
    boxes: str
    read: Callable[[Path, str, SceneOptions], Scene]


# ScanNet's own files (`SCANNET`) come second: they are exact, ScanRefer's are what was published.
SCANNET = "scannet"
LAYOUTS: Mapping[str, Layout | None] = {
    "scanrefer": Layout(("scannet_data",), "_aligned_vert.npy", "_aligned_bbox.npy", read_scanrefer_scene),
    SCANNET: None,
    "mmdetection3d": Layout(
        ("scannet_instance_data",), "_axis_align_matrix.npy", "_aligned_bbox.npy", read_mmdetection3d_scene
    ),
    "votenet": Layout(
        ("scannet_train_detection_data", "scannet_instance_data"), "_ins_label.npy", "_bbox.npy", read_votenet_scene
    ),
}
_SCANS = ("scans", "scans_test")
_ABOVE = ("data/scannet", ".", "scannet", "data")  # where in RAW the folders may lie


@dataclass(frozen=True)
class SceneFiles:
    """The files of scenes.

    Attributes:
        read: a scene by its id; ``RejectedError`` where it cannot be used.
        has_objects: whether there are objects of a scene, without reading its points; ScanNet publishes none for its test scenes.
        files: read for all scenes.
    """

    layout: str
    folder: Path
    read: Callable[[str, SceneOptions], Scene]
    has_objects: Callable[[str], bool]
    files: tuple[Path, ...] = ()


def find_scenes(raw: Path, scenes: Path | None, layout: str | None, looks: str) -> SceneFiles:
    """The files of scenes in the folder ``scenes``, or in one of the usual names inside ``raw``.

    Args:
        layout: one of `LAYOUTS`; none takes the first that is there.
        looks: how the raw folder should look, for the error.

    Raises:
        ValueError: they are not there, or not in that layout; ScanNet's label map is missing or another file.
    """
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is not one of {', '.join(LAYOUTS)}")
    usual = [name for kind in LAYOUTS.values() for name in (kind.folders if kind else _SCANS)]
    places = [scenes] if scenes else [raw / above / name for name in dict.fromkeys(usual) for above in _ABOVE] + [raw]
    there = [place for place in places if place.is_dir()]
    found = {kind: folder for folder in reversed(there) for kind in [layout_of(folder)] if kind}
    kind = layout or next((name for name in LAYOUTS if name in found), None)
    if kind in found:
        return _scene_files(kind, found[kind], raw, looks)
    named = [place for place in there if scenes or place != raw]
    if named and kind in (None, "scanrefer"):  # what is missing is said scene by scene
        return _scene_files("scanrefer", named[0], raw, looks)
    lost = f"scenes in the layout {layout}" if layout else "scenes"
    seen = f"; there are {', '.join(f'{name} in {folder}' for name, folder in found.items())}" if found else ""
    if any((raw / above / f"scannet_infos_{split}.pkl").is_file() for above in _ABOVE for split in ("train", "val")):
        seen += "; mmdetection3d's scannet_infos_*.pkl have no object ids and are not read, scannet_instance_data beside them has"
    raise ValueError(f"{scenes or raw}: {lost} not found{seen}. The raw folder should look like this:\n{looks}")


def layout_of(folder: Path) -> str | None:
    """The layout of a folder, by the names in it."""
    marks = {layout.mark: name for name, layout in LAYOUTS.items() if layout} | {MESH: SCANNET}
    names: set[str] = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir() and (Path(entry.path) / f"{entry.name}{MESH}").is_file():
                names.add(SCANNET)
            names.update(name for mark, name in marks.items() if entry.name.endswith(mark))
    return next((name for name in LAYOUTS if name in names), None)


def _scene_files(kind: str, folder: Path, raw: Path, looks: str) -> SceneFiles:
    layout = LAYOUTS[kind]
    if layout:
        boxes = layout.boxes
        return SceneFiles(
            kind, folder, partial(layout.read, folder), lambda scene_id: has_boxes(folder / f"{scene_id}{boxes}")
        )
    places = [f"{place}/{LABEL_MAP}" for above in _ABOVE for place in (above, f"{above}/meta_data")]
    beside = [folder / LABEL_MAP, folder.parent / LABEL_MAP]
    label_map = next((path for path in beside if path.is_file()), None) or find_raw(raw, places, looks)
    labels = read_label_map(label_map, Counter())
    folders = [folder, *(folder.parent / name for name in _SCANS if folder.name in _SCANS and name != folder.name)]

    def of(scene_id: str) -> Path:
        return next((one for one in folders if scan_file(one, scene_id, MESH).is_file()), folder)

    def has_objects(scene_id: str) -> bool:
        return any(scan_file(of(scene_id), scene_id, ending).is_file() for ending in OBJECTS)

    return SceneFiles(
        kind,
        folder,
        lambda scene_id, options: read_scan(of(scene_id), scene_id, labels, options),
        has_objects,
        (label_map,),
    )
