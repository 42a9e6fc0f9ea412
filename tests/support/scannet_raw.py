"""One made scan, written as ScanNet ships it and as the scripts of ScanRefer, VoteNet and mmdetection3d leave it.

The boxes are computed here vertex by vertex, as those scripts do, not by the project's code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

VOTENET_CLASSES = (3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39)
LABELS = {"wall": 1, "floor": 2, "chair": 5, "table": 7, "lamp": 35, "object": 40, "ceiling": 22, "picture": 11}
# A scan's own axes against the room's: 30 degrees about z, and a shift.
TURN = np.deg2rad(30)
ALIGNMENT = np.array(
    [
        [np.cos(TURN), np.sin(TURN), 0, -1.25],
        [-np.sin(TURN), np.cos(TURN), 0, 2.5],
        [0, 0, 1, -0.0625],
        [0, 0, 0, 1],
    ]
)
TSV_HEADER = "id\traw_category\tcategory\tcount\tnyu40id\teigen13id\tnyuClass\tnyu40class\twnsynsetid"


@dataclass
class Scan:
    """``xyz`` [V, 3] float32 and ``colours`` [V, 3] uint8 of the mesh as scanned, ``instances`` [V] (objectId, -1: none), ``names`` by objectId."""

    xyz: np.ndarray
    colours: np.ndarray
    instances: np.ndarray
    names: list[str]
    alignment: np.ndarray | None
    scene_id: str = "scene0000_00"
    order: list[int] = field(default_factory=list)  # of the objects in the aggregation

    @property
    def aligned(self) -> np.ndarray:
        """[V, 3] float32 in the room's axes."""
        matrix = np.eye(4) if self.alignment is None else self.alignment
        whole = np.concatenate([self.xyz, np.ones((len(self.xyz), 1))], axis=1) @ matrix.T
        return whole[:, :3].astype(np.float32)

    @property
    def semantics(self) -> np.ndarray:
        """[V] NYU40 class, 0 for none."""
        return np.array([LABELS[self.names[k]] if k >= 0 else 0 for k in self.instances], dtype=np.uint32)

    def box_rows(self, xyz: np.ndarray) -> np.ndarray:
        """[objects, 8]: centre, sizes, class, objectId."""
        rows = []
        for k, name in enumerate(self.names):
            own = xyz[self.instances == k].astype(np.float64)
            low, high = own.min(0), own.max(0)
            rows.append([*(low + high) / 2, *(high - low), LABELS[name], k])
        return np.array(rows)

    def boxes(self) -> dict[str, list[float]]:
        """objectId to min xyz, max xyz, for the objects that ScanRefer keeps."""
        return {
            str(int(row[7])): [*(row[:3] - row[3:6] / 2), *(row[:3] + row[3:6] / 2)]
            for row in self.box_rows(self.aligned)
            if row[6] not in (0, 1, 2, 22)
        }


def make_scan(alignment: np.ndarray | None = ALIGNMENT, scene_id: str = "scene0000_00", seed: int = 0) -> Scan:
    """A room of 4 m x 3 m with floor, wall, four pieces and a few vertices that nobody labelled; 800 vertices, in no order."""
    rng = np.random.default_rng(seed)
    pieces = [
        ("floor", (0, 0, 0), (4, 3, 0.01), 300),
        ("chair", (0.5, 0.5, 0), (0.5, 0.4, 0.9), 100),
        ("chair", (3.0, 0.5, 0), (0.4, 0.5, 0.8), 100),
        ("wall", (0, 2.9, 0), (4, 0.1, 2.5), 100),
        ("table", (1.5, 1.5, 0), (1.2, 0.8, 0.75), 100),
        ("lamp", (1.9, 1.8, 0.75), (0.2, 0.2, 0.4), 50),
        ("object", (2.2, 1.6, 0.75), (0.3, 0.2, 0.1), 30),
    ]
    room = np.concatenate([rng.uniform(low, np.add(low, size), (n, 3)) for _, low, size, n in pieces])
    instances = np.repeat(np.arange(len(pieces)), [n for *_, n in pieces])
    room, instances = np.concatenate([room, rng.uniform(0, 3, (20, 3))]), np.append(instances, np.full(20, -1))
    mixed = rng.permutation(len(room))
    matrix = np.linalg.inv(np.eye(4) if alignment is None else alignment)
    scanned = np.concatenate([room, np.ones((len(room), 1))], axis=1) @ matrix.T
    return Scan(
        scanned[mixed, :3].astype(np.float32),
        rng.integers(0, 256, (len(room), 3), dtype=np.uint8),
        instances[mixed],
        [name for name, *_ in pieces],
        alignment,
        scene_id,
        [4, 0, 2, 6, 1, 3, 5],
    )


def write_label_map(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{k}\t{name}\t{name}\t9\t{nyu}\t7\t\t{name}\t" for k, (name, nyu) in enumerate(LABELS.items(), 1)]
    path.write_text("\n".join([TSV_HEADER, *rows, "99\trug\trug\t9\t\t\t\t\t"]) + "\n")


def ply(scan: Scan, text: bool = False) -> bytes:
    """The mesh: vertices with alpha, and faces behind them."""
    kind = "ascii" if text else "binary_little_endian"
    header = [
        "ply",
        f"format {kind} 1.0",
        "comment VCGLIB generated",
        f"element vertex {len(scan.xyz)}",
        *[f"property float {axis}" for axis in "xyz"],
        *[f"property uchar {name}" for name in ("red", "green", "blue", "alpha")],
        "element face 2",
        "property list uchar int vertex_indices",
        "end_header\n",
    ]
    if text:
        lines = [
            f"{x:.9g} {y:.9g} {z:.9g} {r} {g} {b} 255"
            for (x, y, z), (r, g, b) in zip(scan.xyz.tolist(), scan.colours.tolist(), strict=True)
        ]
        return "\n".join([*header[:-1], "end_header", *lines, "3 0 1 2", "3 1 2 3", ""]).encode()
    columns = [(axis, "<f4") for axis in "xyz"] + [(name, "u1") for name in ("red", "green", "blue", "alpha")]
    vertices = np.zeros(len(scan.xyz), dtype=columns)
    for i, axis in enumerate("xyz"):
        vertices[axis] = scan.xyz[:, i]
    for i, name in enumerate(("red", "green", "blue")):
        vertices[name] = scan.colours[:, i]
    faces = b"".join(b"\x03" + np.array(face, "<i4").tobytes() for face in ([0, 1, 2], [1, 2, 3]))
    return "\n".join(header).encode() + vertices.tobytes() + faces


def write_scannet(raw: Path, scan: Scan, flat: bool = False, text: bool = False) -> Path:
    """``RAW/scans/ID/`` as ScanNet ships it, or all files in ``RAW/scans``. Every object has two segments, and lists one of them twice."""
    name = scan.scene_id
    folder = raw / "scans" if flat else raw / "scans" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}_vh_clean_2.ply").write_bytes(ply(scan, text))
    lines = ["colorHeight = 968", "sceneType = Living room / Lounge"]
    if scan.alignment is not None:
        lines.insert(0, "axisAlignment = " + " ".join(f"{v:.9f}" for v in scan.alignment.ravel()) + " ")
    (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    half = np.arange(len(scan.xyz)) % 2
    segments = np.where(scan.instances < 0, 7, 1000 + 10 * scan.instances + half)
    groups = [
        {"id": i, "objectId": k, "segments": [1000 + 10 * k, 1001 + 10 * k], "label": scan.names[k]}
        for i, k in enumerate(scan.order)
    ]
    ids = f"scannet.{name}"
    tree = {"sceneId": ids, "appId": "Aggregator.v2", "segGroups": groups}
    (folder / f"{name}.aggregation.json").write_text(json.dumps(tree))
    tree = {"params": {"kThresh": "0.0001"}, "sceneId": ids, "segIndices": segments.tolist()}
    (folder / f"{name}_vh_clean_2.0.010000.segs.json").write_text(json.dumps(tree))
    write_label_map(raw / "scannetv2-labels.combined.tsv")
    return folder


def write_scanrefer(raw: Path, scan: Scan) -> Path:
    """As ScanRefer's script: both frames, 9 columns, boxes with objectId."""
    folder = raw / "scannet_data"
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, xyz in (("", scan.xyz), ("aligned_", scan.aligned)):
        vertices = np.concatenate([xyz, scan.colours, np.zeros_like(xyz)], axis=1, dtype=np.float32)
        boxes = scan.box_rows(xyz)
        np.save(folder / f"{scan.scene_id}_{prefix}vert.npy", vertices)
        np.save(folder / f"{scan.scene_id}_{prefix}bbox.npy", boxes[~np.isin(boxes[:, 6], (0, 1, 2, 22))])
    write_labels(folder, scan)
    return folder


def write_votenet(raw: Path, scan: Scan) -> Path:
    """As VoteNet's script: aligned vertices of 6 columns, boxes of 18 classes without objectId."""
    folder = raw / "scannet_train_detection_data"
    folder.mkdir(parents=True, exist_ok=True)
    boxes = scan.box_rows(scan.aligned)[:, :7]
    np.save(
        folder / f"{scan.scene_id}_vert.npy", np.concatenate([scan.aligned, scan.colours], axis=1, dtype=np.float32)
    )
    np.save(folder / f"{scan.scene_id}_bbox.npy", boxes[np.isin(boxes[:, 6], VOTENET_CLASSES)])
    write_labels(folder, scan)
    return folder


def write_mmdetection3d(raw: Path, scan: Scan) -> Path:
    """As mmdetection3d's script: vertices as scanned, the matrix beside them, boxes of both frames."""
    folder = raw / "scannet_instance_data"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{scan.scene_id}_vert.npy", np.concatenate([scan.xyz, scan.colours], axis=1, dtype=np.float32))
    for prefix, xyz in (("unaligned_", scan.xyz), ("aligned_", scan.aligned)):
        boxes = scan.box_rows(xyz)[:, :7]
        np.save(folder / f"{scan.scene_id}_{prefix}bbox.npy", boxes[np.isin(boxes[:, 6], VOTENET_CLASSES)])
    np.save(folder / f"{scan.scene_id}_axis_align_matrix.npy", np.eye(4) if scan.alignment is None else scan.alignment)
    write_labels(folder, scan)
    return folder


def write_labels(folder: Path, scan: Scan) -> None:
    np.save(folder / f"{scan.scene_id}_ins_label.npy", (scan.instances + 1).astype(np.uint32))
    np.save(folder / f"{scan.scene_id}_sem_label.npy", scan.semantics)
