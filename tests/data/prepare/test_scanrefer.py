"""ScanRefer's converter on hand-made scenes: boxes and points of two coordinate frames."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rb.data.formats import FormatError, ObjectAnnotation, Record, read_rejected
from rb.data.prepare import scanrefer
from rb.data.shard_writer import ShardWriter
from rb.data.shards import adopt
from rb.sources.points import decode_points, encode_points
from tests.support.raw_data import convert, found

CENTRES = np.array([[0.5, 0.5], [4.5, 0.5], [0.5, 4.5], [4.0, 2.5]])  # of four stools in a room of 5 m x 5 m


def points_of_a_room() -> np.ndarray:
    """[N, 9] vertices: a floor and four stools, grey."""
    rng = np.random.default_rng(0)
    floor = np.concatenate([rng.uniform(0, 5, (400, 2)), np.zeros((400, 1))], axis=1)
    stools = [
        np.concatenate([rng.uniform(c - 0.2, c + 0.2, (200, 2)), rng.uniform(0.1, 0.5, (200, 1))], axis=1)
        for c in CENTRES
    ]
    xyz = np.concatenate([floor, *stools])
    return np.concatenate([xyz, np.full((len(xyz), 3), 128.0), np.zeros((len(xyz), 3))], axis=1).astype(np.float32)


def boxes_of(centres: np.ndarray, bottom: float = 0.05) -> np.ndarray:
    """[K, 8] rows of ``bbox.npy``: centre, sizes, class, objectId."""
    rows = [[*c, bottom + 0.25, 0.4, 0.4, 0.5, 5, k] for k, c in enumerate(centres)]
    return np.array(rows, dtype=np.float64)


def write_raw(
    folder: Path, boxes: np.ndarray, vertices: np.ndarray | None = None, rows: list[dict] | None = None
) -> Path:
    """One scene, one description of every object."""
    (folder / "scannet_data").mkdir(parents=True)
    np.save(folder / "scannet_data/scene0000_00_aligned_vert.npy", points_of_a_room() if vertices is None else vertices)
    np.save(folder / "scannet_data/scene0000_00_aligned_bbox.npy", boxes)
    said = rows or [described(k) for k in range(len(boxes))]
    (folder / "ScanRefer_filtered_val.json").write_text(json.dumps(said))
    return folder


def described(object_id: int, text: str = "a stool.", **changes: object) -> dict:
    return {"scene_id": "scene0000_00", "object_id": str(object_id), "ann_id": "0", "description": text, **changes}


def rejected(out: Path) -> Counter:
    return Counter(row.reason for row in read_rejected(out / "rejected.jsonl"))


def test_a_box_in_empty_air_is_rejected_though_it_lies_within_the_scene(tmp_path: Path) -> None:
    boxes = np.concatenate([boxes_of(CENTRES), boxes_of(np.array([[2.5, 1.5]]), bottom=0.2)])
    boxes[4, 7] = 4
    tally = convert(scanrefer, write_raw(tmp_path / "raw", boxes), tmp_path / "out", "val")
    assert (tally.used, tally.rejected) == (4, Counter(box_without_points=1))
    (row,) = read_rejected(tmp_path / "out/rejected.jsonl")
    assert row.object_id == "4"
    assert "holds none of the 1,200 points" in row.detail


def test_unaligned_boxes_under_the_aligned_name_cost_the_whole_scene(tmp_path: Path) -> None:
    """Turned by 40 degrees, as a scan's own axes are: three boxes hold nothing; the fourth would hold the wrong points."""
    turn = np.deg2rad(40)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    boxes = boxes_of(CENTRES @ matrix.T)
    boxes[3, :2] = CENTRES[0]
    with pytest.raises(ValueError, match=r"scene_not_aligned: 4"):
        convert(scanrefer, write_raw(tmp_path / "raw", boxes), tmp_path / "out", "val")


def test_an_empty_result_names_files_and_shapes(tmp_path: Path) -> None:
    """VoteNet's vertices have 6 columns, its boxes 7."""
    for number, (boxes, vertices, says) in enumerate(
        (
            (
                boxes_of(CENTRES),
                points_of_a_room()[:, :6],
                r"points_unreadable: .*_vert\.npy: the array must be .*\[N, 9\], got",
            ),
            (
                boxes_of(CENTRES)[:, :7],
                None,
                r"boxes_unreadable: .*_bbox\.npy: the array must be .*\[N, 8\], got .*\[4, 7\]",
            ),
        )
    ):
        raw = write_raw(tmp_path / f"raw{number}", boxes, vertices)
        with pytest.raises(ValueError, match=rf"_unreadable: 4\), such as\n  scannet/scene0000_00, object 0: {says}"):
            convert(scanrefer, raw, tmp_path / "out", "val")
    (raw / "ScanRefer_filtered_val.json").write_text("[]")
    with pytest.raises(ValueError, match=r"ScanRefer_filtered_val\.json: holds no description"):
        convert(scanrefer, raw, tmp_path / "out", "val")


def test_a_box_that_touches_its_points_with_a_face_holds_them(tmp_path: Path) -> None:
    vertices = points_of_a_room()
    inside = np.abs(vertices[:, :2] - CENTRES[0]).max(1) < 0.21
    vertices = np.concatenate([vertices[~inside], vertices[:1]])
    vertices[-1, :3] = [0.25, 0.5, 0.5]  # on the face x = 0.25 of the first box
    boxes = boxes_of(CENTRES)
    boxes[0, 3] = 0.5
    assert convert(scanrefer, write_raw(tmp_path / "raw", boxes, vertices), tmp_path / "out", "val").used == 4


def test_indexing_foreign_tars_refuses_a_box_without_points(tmp_path: Path) -> None:
    cloud = points_of_a_room()[:, :3]
    full = ObjectAnnotation("0", [0.3, 0.3, 0.0, 0.7, 0.7, 0.5], ["a stool"])
    with ShardWriter(tmp_path / "set", "x", "point_cloud_region", "val") as writer:
        writer.write(Record("s/0", "x", "val", 0, 0, [], [full]), encode_points(cloud), "points.npy")
        # Of the same length, in the same tar: half a metre above the stool.
        air = ObjectAnnotation("1", [0.3, 0.3, 1.0, 0.7, 0.7, 1.5], ["a stool"])
        with pytest.raises(FormatError, match=r"objects\[1\]: box .* holds none of the 1200 points"):
            writer.write(Record("s/1", "x", "val", 0, 0, [], [full, air]), encode_points(cloud), "points.npy")
    (tar,) = (tmp_path / "set").glob("*.tar")
    tar.write_bytes(tar.read_bytes().replace(b"[0.3,0.3,0.0,0.7,0.7,0.5]", b"[0.3,0.3,1.0,0.7,0.7,1.5]"))
    with pytest.raises(
        FormatError, match=r"x-000000\.tar: key '000000000'.*objects\[0\]: box .* holds none of the 1200 points"
    ):
        adopt(tmp_path / "set", "point_cloud_region", overwrite=True)


def test_descriptions_without_an_annotation_id_are_told_apart_by_their_words(tmp_path: Path) -> None:
    rows = [described(0, "a stool."), described(0, "the stool by the door."), described(0, "a  stool.")]
    for row in rows:
        del row["ann_id"]
    rows += [
        described(1, "a low stool.", ann_id=None),
        described(1, "a wooden stool.", ann_id=""),
        described(1, "a round stool.", ann_id=float("nan")),
        described(2, "a stool.", ann_id="0"),
        described(2, "said again.", ann_id=0),  # the id says that it is the same annotation
    ]
    tally = convert(scanrefer, write_raw(tmp_path / "raw", boxes_of(CENTRES), rows=rows), tmp_path / "out", "val")
    (item,) = found(tmp_path / "out").values()
    assert {one.object_id: len(one.captions) for one in item.record.objects} == {"0": 2, "1": 3, "2": 1}
    assert tally.rejected == {"duplicate_source": 2}


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_colours_of_a_scene_of_either_range(tmp_path: Path, scale: float) -> None:
    vertices = points_of_a_room()
    vertices[:, 3:6] = np.linspace(0, scale, len(vertices))[:, None]
    convert(scanrefer, write_raw(tmp_path / "raw", boxes_of(CENTRES), vertices), tmp_path / "out", "val", colours=True)
    (item,) = found(tmp_path / "out").values()
    np.testing.assert_allclose(decode_points(item.media, "x")[:, 3], np.linspace(0, 1, len(vertices)), atol=1e-6)


@pytest.mark.parametrize("place", ["data", "data/ScanRefer"])
def test_the_layout_of_scanrefers_own_repository(tmp_path: Path, place: str) -> None:
    write_raw(tmp_path / "raw", boxes_of(CENTRES))
    repository = tmp_path / "repository"
    (repository / place).mkdir(parents=True)
    (repository / "data/scannet").mkdir(parents=True)
    (tmp_path / "raw/scannet_data").rename(repository / "data/scannet/scannet_data")
    (tmp_path / "raw/ScanRefer_filtered_val.json").rename(repository / place / "ScanRefer_filtered_val.json")
    assert convert(scanrefer, repository, tmp_path / "out", "val").used == 4
    if place == "data":  # and RAW may be the repository's data folder
        assert convert(scanrefer, repository / "data", tmp_path / "inner", "val").used == 4
