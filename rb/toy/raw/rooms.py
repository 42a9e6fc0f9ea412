"""Toy rooms as ScanRefer's raw files: descriptions as JSON, and each scene's ``.npy`` files as ScanNet's preparation leaves them.

About one scene in a hundred is spoiled, in every way that ``rb prepare scanrefer`` must notice: the name of a kind is the reason that must
turn up. Called by ``rb toy raw``; the rooms are made in rb/toy/world/rooms.py.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rb.core import seeding
from rb.data.prepare.clouds import parse_npy
from rb.toy.raw.files import plan, write_file, write_json
from rb.toy.world.rooms import FLOOR, WALL, ToyRoom, descriptions, make_room, room_truth
from rb.toy.world.vocabulary import SHAPES

SCANREFER_KINDS = (
    "scene_not_aligned",
    "box_empty",
    "box_outside_cloud",
    "unknown_object",
    "points_not_finite",
    "points_missing",
    "points_unreadable",
    "too_few_points",
    "boxes_missing",
    "no_caption",
    "duplicate_source",
)
_FEW_POINTS = 100
_NYU40 = {"wall": 1, "floor": 2, "cube": 29, "ball": 39, "cone": 40}  # box, otherfurniture, otherprop
_Json = dict[str, Any]


def write_scanrefer(folder: Path, seed: int, sizes: Mapping[str, int], bar: Any) -> None:
    """``ScanRefer_filtered_<split>.json`` and ``scannet_data/<scene>_*.npy``; the truth's keys are ``scannet/<scene>``."""
    rows: dict[str, list[_Json]] = {split: [] for split in sizes}
    truth: dict[str, Any] = {}
    for number, (split, index, kind) in enumerate(plan(sizes, SCANREFER_KINDS)):
        room = make_room(seed, f"scanrefer-{split}", index)
        scene_id = f"scene{number:04d}_00"
        said = _rows(room, scene_id)
        files = _files(room, seed)
        if kind is not None and said:
            said, files = _spoil(kind, said, files)
        rows[split] += said
        truth[f"scannet/{scene_id}"] = room_truth(room)
        for name, data in files.items():
            write_file(folder / "scannet_data" / f"{scene_id}_{name}.npy", data)
        bar.update()
    for split, said in rows.items():
        write_json(folder / f"ScanRefer_filtered_{split}.json", said)
    write_json(folder / "truth.json", truth)


def _rows(room: ToyRoom, scene_id: str) -> list[_Json]:
    return [
        {
            "scene_id": scene_id,
            "object_id": item.object_id,
            "object_name": item.shape,
            "ann_id": str(k),
            "description": f"{text}.",
            "token": [*text.replace(",", " ,").split(), "."],
        }
        for item in room.objects
        for k, text in enumerate(descriptions(room, item))
    ]


def _files(room: ToyRoom, seed: int) -> dict[str, bytes]:
    """Vertices float32 [N, 9] with grey colours and zero normals, boxes float64 [K, 8], labels uint32 [N]; the unaligned ones too."""
    grey = seeding.generator("toy room colours", seed, room.room_id).integers(90, 180, size=(len(room.points), 1))
    vertices = np.concatenate(
        [room.points, np.repeat(grey, 3, axis=1), np.zeros((len(room.points), 3))], axis=1, dtype=np.float32
    )
    boxes = np.array([_bbox(item.box, item.shape, int(item.object_id)) for item in room.objects], dtype=np.float64)
    names = {FLOOR: "floor", WALL: "wall", **{int(item.object_id): item.shape for item in room.objects}}
    semantic = np.array([_NYU40[names[int(k)]] for k in room.instances], dtype=np.uint32)
    # A scan's own axes: turned by some angle about z.
    angle = float(seeding.generator("toy room axes", seed, room.room_id).uniform(0.2, 1.2))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    raw_vertices, raw_boxes = vertices.copy(), boxes.copy()
    raw_vertices[:, :2] = vertices[:, :2] @ turn.T
    raw_boxes[:, :2] = boxes[:, :2] @ turn.T
    raw_boxes[:, 3:5] = boxes[:, 3:5] @ np.abs(turn).T
    return {
        "aligned_vert": _npy(vertices),
        "aligned_bbox": _npy(boxes),
        "vert": _npy(raw_vertices),
        "bbox": _npy(raw_boxes),
        "ins_label": _npy((room.instances + 1).astype(np.uint32)),
        "sem_label": _npy(semantic),
    }


def _bbox(box: tuple[float, ...], shape: str, object_id: int) -> list[float]:
    low, high = np.array(box[:3]), np.array(box[3:])
    assert shape in SHAPES
    return [*((low + high) / 2).tolist(), *(high - low).tolist(), float(_NYU40[shape]), float(object_id)]


def _spoil(kind: str, rows: list[_Json], files: dict[str, bytes]) -> tuple[list[_Json], dict[str, bytes]]:
    """Rows and files of a spoiled scene."""
    files = dict(files)
    vertices, boxes = (
        parse_npy(files[name], (columns,)).copy() for name, columns in (("aligned_vert", 9), ("aligned_bbox", 8))
    )
    described = boxes[:, 7] == float(rows[0]["object_id"])
    if kind == "scene_not_aligned":
        del files["aligned_vert"], files["aligned_bbox"]
    elif kind == "points_missing":
        del files["aligned_vert"], files["vert"]
    elif kind == "boxes_missing":
        del files["aligned_bbox"], files["bbox"]
    elif kind == "points_unreadable":
        files["aligned_vert"] = files["aligned_vert"][: len(files["aligned_vert"]) // 2]
    elif kind == "points_not_finite":
        vertices[len(vertices) // 2, 1] = np.nan
        files["aligned_vert"] = _npy(vertices)
    elif kind == "too_few_points":
        files["aligned_vert"] = _npy(vertices[:_FEW_POINTS])
    elif kind == "box_empty":
        boxes[described, 5] = 0.0
        files["aligned_bbox"] = _npy(boxes)
    elif kind == "box_outside_cloud":
        boxes[described, 0] += 20.0
        files["aligned_bbox"] = _npy(boxes)
    elif kind == "unknown_object":
        files["aligned_bbox"] = _npy(boxes[~described])
    elif kind == "no_caption":
        rows = [{**rows[0], "description": " \n"}, *rows[1:]]
    else:
        assert kind == "duplicate_source", kind
        rows = [*rows, rows[0]]
    return rows, files


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()
