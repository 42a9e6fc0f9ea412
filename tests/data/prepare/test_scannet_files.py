"""ScanNet's own files: mesh, alignment, segments, objects, label map; each damaged one is named."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rb.core.boxes import points_in_box
from rb.data.prepare.common import RejectedError
from rb.data.prepare.scannet_files import read_label_map, read_scan
from rb.data.prepare.scenes import UNALIGNED, Scene, SceneOptions
from tests.support.scannet_raw import LABELS, Scan, make_scan, write_scannet

ID = "scene0000_00"


def scene(folder: Path, **options: object) -> Scene:
    return read_scan(folder, ID, LABELS, SceneOptions(**options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def scan() -> Scan:
    return make_scan()


@pytest.fixture
def folder(tmp_path: Path, scan: Scan) -> Path:
    """Its files' folder; the scans' folder is its parent."""
    return write_scannet(tmp_path, scan)


def rewrite(path: Path, change) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


@pytest.mark.parametrize(("flat", "text"), [(False, False), (True, False), (False, True)])
def test_a_scan_becomes_aligned_points_and_boxes(tmp_path: Path, scan: Scan, flat: bool, text: bool) -> None:
    write_scannet(tmp_path, scan, flat, text)
    got = scene(tmp_path / "scans", colours=True)
    np.testing.assert_allclose(got.points[:, :3], scan.aligned, atol=1e-5)
    np.testing.assert_allclose(got.points[:, 3:], scan.colours / 255, atol=1e-6)
    assert got.boxes.keys() == scan.boxes().keys() == {"1", "2", "4", "5", "6"}
    for object_id, box in scan.boxes().items():
        np.testing.assert_allclose(got.boxes[object_id], box, atol=1e-5)
    assert got.left_out == {"0": "'floor', NYU40 class 2", "3": "'wall', NYU40 class 1"}
    assert not got.notes


def test_a_scan_without_alignment_stays_as_it_is_and_is_counted(tmp_path: Path) -> None:
    scan = make_scan(alignment=None)
    write_scannet(tmp_path, scan)
    got = scene(tmp_path / "scans")
    np.testing.assert_array_equal(got.points, scan.xyz)
    assert got.notes == {UNALIGNED: 1}


def test_the_later_object_has_a_shared_segment_and_equal_labels_stay_apart(folder: Path, scan: Scan) -> None:
    """The first chair in the file also lists the second one's segments, as lists that scripts share do; ids have gaps."""

    def change(tree: dict) -> None:
        by_id = {group["objectId"]: group for group in tree["segGroups"]}
        by_id[2]["segments"] += by_id[1]["segments"]  # the file has object 2 before object 1
        by_id[6]["objectId"] = 40

    rewrite(folder / f"{ID}.aggregation.json", change)
    got = scene(folder.parent)
    want = scan.boxes()
    want["40"] = want.pop("6")
    assert got.boxes.keys() == want.keys()
    for object_id, box in want.items():
        np.testing.assert_allclose(got.boxes[object_id], box, atol=1e-5)


def test_fewer_points_are_the_same_ones_each_time_and_boxes_stay_whole(folder: Path, scan: Scan) -> None:
    whole, some, again = (scene(folder.parent, max_points=n) for n in (0, 200, 200))
    assert (len(whole.points), len(some.points)) == (len(scan.xyz), 200)
    np.testing.assert_array_equal(some.points, again.points)
    assert some.boxes == whole.boxes
    few = scene(folder.parent, max_points=12)
    assert len(few.points) == 12
    assert all(points_in_box(few.points, box) for box in whole.boxes.values())
    rows = {tuple(row) for row in whole.points.tolist()}
    assert all(tuple(row) in rows for row in some.points.tolist())


def test_the_objects_of_the_finer_mesh_are_read_where_there_are_no_others(folder: Path, scan: Scan) -> None:
    path = folder / f"{ID}.aggregation.json"
    path.rename(folder / f"{ID}_vh_clean.aggregation.json")
    # Some of its segments have no vertex in the coarser mesh.
    rewrite(folder / f"{ID}_vh_clean.aggregation.json", lambda tree: tree["segGroups"][0]["segments"].extend([5, 6]))
    got = scene(folder.parent)
    np.testing.assert_allclose(got.boxes["4"], scan.boxes()["4"], atol=1e-5)
    assert got.notes == {"segments of objects that are not in the mesh": 2}


def test_a_test_scan_has_points_but_no_objects(folder: Path) -> None:
    (folder / f"{ID}.aggregation.json").unlink()
    with pytest.raises(RejectedError, match=r"boxes_missing: .*0000_00\.aggregation\.json: not found; .* test scans"):
        scene(folder.parent)


AGGREGATION, SEGMENTS = f"{ID}.aggregation.json", f"{ID}_vh_clean_2.0.010000.segs.json"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (f"{ID}_vh_clean_2.ply", None, r"points_missing: .*_vh_clean_2\.ply: No such file"),
        (f"{ID}_vh_clean_2.ply", b"ply\nformat ascii 1.0\n", r"points_unreadable: .*not a PLY file"),
        (f"{ID}.txt", None, r"scene_not_aligned: .*scene0000_00\.txt: No such file"),
        (f"{ID}.txt", b"axisAlignment = 1 0 0\n", r"scene_not_aligned: .*must be 16 numbers, got '1 0 0'"),
        (f"{ID}.txt", b"axisAlignment = " + b"1 " * 16, r"scene_not_aligned: .*last four are 0 0 0 1"),
        (f"{ID}.txt", b"axisAlignment = " + b"nan " * 12 + b"0 0 0 1", r"scene_not_aligned: .*finite"),
        (SEGMENTS, None, r"boxes_missing: .*segs\.json: No such file"),
        (SEGMENTS, b'{"segIndices": [1, 2]}', r"boxes_unreadable: .*800 vertices, got 2 values"),
        (SEGMENTS, b'{"segIndices": [1, "2"]}', r"boxes_unreadable: .*800 vertices"),
        (SEGMENTS, b"[" * 90_000, r"boxes_unreadable: .*segs\.json: not valid JSON"),
        (
            SEGMENTS,
            b'{"segIndices": [' + b"{}," * 100_001 + b"1]}",
            r"boxes_unreadable: .*more than 100,000 lists and objects",
        ),
        (AGGREGATION, b'{"segGroups": 5}', r"boxes_unreadable: .*segGroups"),
        (AGGREGATION, b'{"segGroups": [{"objectId": 0, "segments": [1]}]}', r"boxes_unreadable: .*objectId, label"),
        (
            AGGREGATION,
            b'{"segGroups": [{"objectId": 0, "segments": [1], "label": "chair"}]}',
            r"boxes_unreadable: .*1 of the 1 segments .* of one scan",
        ),
        (
            AGGREGATION,
            json.dumps({"segGroups": [{"objectId": 0, "segments": [7], "label": "chair"}] * 2}).encode(),
            r"boxes_unreadable: .*objectId 0 comes twice",
        ),
    ],
)
def test_damaged_files_are_named(folder: Path, name: str, content: bytes | None, says: str) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(RejectedError, match=says) as caught:
        scene(folder.parent)
    assert "\n" not in str(caught.value)


def test_a_file_larger_than_any_of_its_kind_is_not_read(folder: Path) -> None:
    for name, says in ((SEGMENTS, "8,388,608 bytes"), (f"{ID}_vh_clean_2.ply", "67,108,864 bytes")):
        with (folder / name).open("r+b") as file:
            file.truncate(65 << 20)
        with pytest.raises(RejectedError, match=f"more than {says}"):
            scene(folder.parent)


def test_colours_that_are_asked_for_must_be_there(folder: Path, scan: Scan) -> None:
    path = folder / f"{ID}_vh_clean_2.ply"
    lines = [f"{x:.9g} {y:.9g} {z:.9g}" for x, y, z in scan.xyz.tolist()]
    header = ["ply", "format ascii 1.0", f"element vertex {len(lines)}", *[f"property float {a}" for a in "xyz"]]
    path.write_text("\n".join([*header, "end_header", *lines, ""]))
    assert scene(folder.parent).points.shape == (800, 3)
    with pytest.raises(RejectedError, match=r"colours_unclear: .*without --colours"):
        scene(folder.parent, colours=True)


def test_the_label_map(tmp_path: Path, scan: Scan) -> None:
    write_scannet(tmp_path, scan)
    path = tmp_path / "scannetv2-labels.combined.tsv"
    assert read_label_map(path, Counter()) == {**LABELS, "rug": 0}
    for content, says in (
        ("id\traw_category\n1\twall\n", r"line 2: needs the columns raw_category and nyu40id"),
        ("id\traw_category\tnyu40id\n1\twall\tx\n", "a number.*got 'x'"),
        ("id\traw_category\tnyu40id\n", "holds no label"),
        ("<!DOCTYPE html>", "web page"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=says):
            read_label_map(path, Counter())
