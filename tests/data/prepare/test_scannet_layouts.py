"""``rb prepare scanrefer`` on every layout of the scenes: which one is found, that all give the same set, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rb.cli import main as rb
from rb.data.prepare import scanrefer
from rb.data.prepare.scannet_layouts import LAYOUTS, find_scenes, layout_of
from tests.support import scannet_raw
from tests.support.raw_data import convert, found, rejected_rows
from tests.support.scannet_raw import Scan, make_scan

WRITERS = {
    "scanrefer": scannet_raw.write_scanrefer,
    "scannet": scannet_raw.write_scannet,
    "mmdetection3d": scannet_raw.write_mmdetection3d,
    "votenet": scannet_raw.write_votenet,
}


@pytest.fixture(scope="module")
def scans() -> list[Scan]:
    """One that is aligned, one without alignment."""
    return [make_scan(), make_scan(None, "scene0707_00", seed=1)]


def described(scans: list[Scan], objects: tuple[int, ...] = (1, 2, 4, 5, 6)) -> list[dict]:
    return [
        {"scene_id": scan.scene_id, "object_id": str(k), "ann_id": str(n), "description": f"thing {k}, said {n}"}
        for scan in scans
        for k in objects
        for n in range(2)
    ]


def write_raw(raw: Path, scans: list[Scan], *layouts: str, split: str = "val") -> Path:
    for layout in layouts:
        for scan in scans:
            WRITERS[layout](raw, scan)
    raw.mkdir(exist_ok=True)
    (raw / f"ScanRefer_filtered_{split}.json").write_text(json.dumps(described(scans)))
    return raw


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_found_and_gives_the_same_set(tmp_path: Path, scans: list[Scan], layout: str) -> None:
    raw = write_raw(tmp_path / "raw", scans, layout)
    opened = scanrefer.open_raw(raw)
    assert opened.title.startswith(f"scenes: {layout}, in {raw}/")
    tally = convert(scanrefer, raw, tmp_path / "out", "val")
    assert (tally.read, tally.used, tally.notes["objects"]) == (20, 20, 10)
    records = found(tmp_path / "out")
    for scan in scans:
        objects = records[f"scannet/{scan.scene_id}"].record.objects
        assert {item.object_id for item in objects} == {"1", "2", "4", "5", "6"}
        for item in objects:
            np.testing.assert_allclose(item.box, scan.boxes()[item.object_id], atol=1e-5)
            assert len(item.captions) == 2


def test_of_several_layouts_the_first_is_taken_or_the_named_one(tmp_path: Path, scans: list[Scan]) -> None:
    raw = write_raw(tmp_path, scans[:1], *reversed(WRITERS))
    assert find_scenes(raw, None, None, "").layout == "scanrefer"
    for layout in LAYOUTS:
        assert (
            find_scenes(raw, None, layout, "").folder.name
            == {
                "scanrefer": "scannet_data",
                "scannet": "scans",
                "mmdetection3d": "scannet_instance_data",
                "votenet": "scannet_train_detection_data",
            }[layout]
        )
    flat = scannet_raw.write_scannet(tmp_path / "other", scans[0], flat=True)
    assert layout_of(flat) == "scannet"
    assert find_scenes(raw, flat, None, "").folder == flat
    (raw / "scannetv2-labels.combined.tsv").unlink()
    with pytest.raises(ValueError, match=r"scannetv2-labels\.combined\.tsv: not found"):
        find_scenes(raw, None, "scannet", "")


def test_layouts_that_are_not_there_are_named(tmp_path: Path, scans: list[Scan]) -> None:
    raw = write_raw(tmp_path, scans[:1], "votenet")
    with pytest.raises(
        ValueError, match=r"layout mmdetection3d not found; there are votenet in .*detection_data\. The raw"
    ):
        scanrefer.open_raw(raw, layout="mmdetection3d")
    with pytest.raises(ValueError, match="layout 'x' is not one of scanrefer, scannet, mmdetection3d, votenet"):
        scanrefer.open_raw(raw, layout="x")
    (raw / "scannet_train_detection_data").rename(raw / "elsewhere")
    (raw / "scannet_infos_val.pkl").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"scenes not found; .*infos_\*\.pkl have no object ids .* The raw folder should"
    ):
        scanrefer.open_raw(raw)
    assert convert(scanrefer, raw, tmp_path / "out", "val", scenes=raw / "elsewhere").used == 10


def test_test_scenes_without_objects_are_refused_with_the_reason(tmp_path: Path, scans: list[Scan], capsys) -> None:
    raw = write_raw(tmp_path / "raw", scans[:1], "scannet")
    (raw / "ScanRefer_filtered_test.json").write_text(json.dumps(described(scans[1:])))
    test_scan = scannet_raw.write_scannet(tmp_path / "other", scans[1])
    for path in test_scan.glob("*.json"):
        path.unlink()
    (raw / "scans_test").mkdir()
    test_scan.rename(raw / "scans_test" / test_scan.name)
    arguments = ["prepare", "scanrefer", "--raw", str(raw), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert rb([*arguments, "--split", "test"]) == 2
    assert "ScanNet publishes none for its test scenes" in capsys.readouterr().err
    assert rb([*arguments, "--split", "all", "--json"]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["val"]


def test_one_file_of_all_descriptions_with_lists_of_scenes(tmp_path: Path, scans: list[Scan]) -> None:
    raw = write_raw(tmp_path / "raw", scans, "scanrefer")
    (raw / "ScanRefer_filtered_val.json").rename(raw / "ScanRefer_filtered.json")
    with pytest.raises(ValueError, match=r"ScanRefer_filtered_train\.txt, .*: not found"):
        scanrefer.open_raw(raw)
    for split, scan in zip(("train", "val"), scans, strict=True):
        (raw / f"ScanRefer_filtered_{split}.txt").write_text(f"{scan.scene_id}\n")
    assert scanrefer.open_raw(raw).splits == ("train", "val")
    assert convert(scanrefer, raw, tmp_path / "out", "val").read == 10
    assert found(tmp_path / "out").keys() == {f"scannet/{scans[1].scene_id}"}
    (raw / "ScanRefer_filtered_val.txt").write_text("scene0000_01\n")
    with pytest.raises(
        ValueError, match=r"ScanRefer_filtered\.json: holds no description of the scenes in .*_val\.txt"
    ):
        convert(scanrefer, raw, tmp_path / "none", "val")


def test_what_has_no_box_on_purpose_is_said(tmp_path: Path, scans: list[Scan]) -> None:
    raw = write_raw(tmp_path / "raw", scans[:1], "scannet")
    (raw / "ScanRefer_filtered_val.json").write_text(json.dumps(described(scans[:1], (0, 1, 3, 9))))
    tally = convert(scanrefer, raw, tmp_path / "out", "val")
    assert tally.rejected == {"unknown_object": 6}
    details = {row.object_id: row.detail for row in rejected_rows(tmp_path / "out")}
    assert "the object is 'floor', NYU40 class 2; as in ScanRefer's preparation" in details["0"]
    assert "the object is 'wall'" in details["3"]
    assert "no such object among its 5 boxes" in details["9"]


def test_large_scenes_are_thinned_by_a_key(tmp_path: Path, scans: list[Scan]) -> None:
    raw = write_raw(tmp_path / "raw", scans, "scannet")
    for out in ("a", "b"):
        assert convert(scanrefer, raw, tmp_path / out, "val", max_points=600).used == 20
    sets = [{name: item.media for name, item in found(tmp_path / out).items()} for out in ("a", "b")]
    assert sets[0] == sets[1]
    with pytest.raises(ValueError, match="max_points must be 0"):
        scanrefer.open_raw(raw, max_points=100)
