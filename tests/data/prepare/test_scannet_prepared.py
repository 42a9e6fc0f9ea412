"""Prepared scenes of ScanNet: one made scan, written in every layout, gives the same points and boxes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rb.data.prepare.common import RejectedError
from rb.data.prepare.scannet_files import read_scan
from rb.data.prepare.scannet_prepared import (
    HULLS,
    read_mmdetection3d_scene,
    read_scanrefer_scene,
    read_votenet_scene,
)
from rb.data.prepare.scenes import Scene, SceneOptions
from tests.support import scannet_raw
from tests.support.scannet_raw import ALIGNMENT, LABELS, Scan, make_scan

ID = "scene0000_00"
Read = Callable[[Path, Scan], Scene]


def from_scannet(raw: Path, scan: Scan) -> Scene:
    return read_scan(scannet_raw.write_scannet(raw, scan).parent, ID, LABELS, SceneOptions(colours=True))


def from_scanrefer(raw: Path, scan: Scan) -> Scene:
    return read_scanrefer_scene(scannet_raw.write_scanrefer(raw, scan), ID, SceneOptions(colours=True))


def from_votenet(raw: Path, scan: Scan) -> Scene:
    return read_votenet_scene(scannet_raw.write_votenet(raw, scan), ID, SceneOptions(colours=True))


def from_mmdetection3d(raw: Path, scan: Scan) -> Scene:
    return read_mmdetection3d_scene(scannet_raw.write_mmdetection3d(raw, scan), ID, SceneOptions(colours=True))


LAYOUTS: list[Read] = [from_scannet, from_scanrefer, from_votenet, from_mmdetection3d]


@pytest.mark.parametrize("alignment", [ALIGNMENT, None], ids=["aligned", "without alignment"])
@pytest.mark.parametrize("read", LAYOUTS)
def test_all_layouts_give_the_same_scene(tmp_path: Path, read: Read, alignment: np.ndarray | None) -> None:
    scan = make_scan(alignment)
    got = read(tmp_path, scan)
    np.testing.assert_allclose(got.points[:, :3], scan.aligned, atol=1e-5)
    np.testing.assert_allclose(got.points[:, 3:], scan.colours / 255, atol=1e-6)
    want = scan.boxes()
    assert got.boxes.keys() == want.keys()
    for object_id, box in want.items():
        np.testing.assert_allclose(got.boxes[object_id], box, atol=1e-5)
    if read in (from_votenet, from_mmdetection3d):
        assert got.notes == {HULLS: 2}  # the lamp and the "object" are of none of the 18 classes
        assert got.left_out == {"0": "NYU40 class 2", "3": "NYU40 class 1"}


def kept(folder: Path, choice: np.ndarray) -> None:
    """Fewer points, as VoteNet's script keeps."""
    for kind in ("vert", "ins_label", "sem_label"):
        path = folder / f"{ID}_{kind}.npy"
        np.save(path, np.load(path)[choice])


def test_boxes_of_a_thinned_scene_are_those_of_the_full_mesh(tmp_path: Path) -> None:
    """A third of the points is left, and none of one chair: ids still go to the right boxes."""
    scan = make_scan()
    folder = scannet_raw.write_votenet(tmp_path, scan)
    kept(folder, np.flatnonzero((np.arange(len(scan.xyz)) % 3 == 0) & (scan.instances != 1)))
    got = read_votenet_scene(folder, ID, SceneOptions())
    want = scan.boxes()
    for object_id in ("2", "4"):
        np.testing.assert_allclose(got.boxes[object_id], want[object_id], atol=1e-5)
    assert "1" not in got.boxes
    for object_id in ("5", "6"):  # of no class with a box: a little smaller than the full mesh's
        low, high = np.split(np.array(got.boxes[object_id]) - want[object_id], 2)
        assert (low > -1e-6).all()
        assert (high < 1e-6).all()
        assert max(np.abs(low).max(), np.abs(high).max()) < 0.2


def test_boxes_and_labels_of_two_preparations_are_refused(tmp_path: Path) -> None:
    scan = make_scan()
    folder = scannet_raw.write_mmdetection3d(tmp_path, scan)
    (folder / f"{ID}_aligned_bbox.npy").write_bytes((folder / f"{ID}_unaligned_bbox.npy").read_bytes())
    with pytest.raises(RejectedError, match=r"scene_not_aligned: .*[23] of 3 boxes belong to no object"):
        read_mmdetection3d_scene(folder, ID, SceneOptions())


@pytest.mark.parametrize(
    ("kind", "array", "says"),
    [
        ("vert", np.zeros((800, 9), np.float32), r"points_unreadable: .*\[N, 6\], got float32 \[800, 9\]"),
        ("aligned_bbox", np.zeros((3, 8)), r"boxes_unreadable: .*\[N, 7\]"),
        ("ins_label", np.zeros(799, np.uint32), r"boxes_unreadable: .*ins_label\.npy: .*whole numbers \[800\], got"),
        ("ins_label", np.zeros(800, np.float32), "boxes_unreadable: .*whole numbers"),
        ("sem_label", np.full(800, -1), "boxes_unreadable: .*labels must be 0 to 65,535, got -1"),
        ("sem_label", np.full(800, 2**40), "boxes_unreadable: .*labels must be 0 to 65,535"),
        ("axis_align_matrix", np.eye(3), r"scene_not_aligned: .*\[N, 4\]"),
        ("axis_align_matrix", np.zeros((4, 4)), "scene_not_aligned: .*last four are 0 0 0 1"),
        ("axis_align_matrix", np.array([[{}]], dtype=object), "scene_not_aligned: .*numbers, got object"),
        ("ins_label", None, "boxes_missing"),
        ("axis_align_matrix", None, "scene_not_aligned: .*No such file"),
    ],
)
def test_files_of_other_shapes_are_named(tmp_path: Path, kind: str, array: np.ndarray | None, says: str) -> None:
    folder = scannet_raw.write_mmdetection3d(tmp_path, make_scan())
    path = folder / f"{ID}_{kind}.npy"
    path.unlink()
    if array is not None:
        np.save(path, array, allow_pickle=True)
    with pytest.raises(RejectedError, match=says):
        read_mmdetection3d_scene(folder, ID, SceneOptions())
