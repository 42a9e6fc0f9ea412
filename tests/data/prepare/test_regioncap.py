"""The converter of RegionBLIP's flat list: rows in any order, every row counted once, every reason of rejection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rb.data.formats import read_manifest, read_rejected
from rb.data.prepare import grouping, regioncap
from tests.support.raw_data import cli_run, convert, found, jpeg, reasons
from tests.support.remedies import remedy

COCO = "train2014/COCO_train2014_000000000009.jpg"
COCO_2017 = "val2017/000000000025.jpg"


def row(image: object, box: object = (1, 2, 10.5, 5), caption: object = "left man", **more: object) -> dict[str, Any]:
    return {"image": image, "bbox": list(box) if isinstance(box, tuple) else box, "caption": caption, **more}


def list_raw(folder: Path, rows: list[Any], images: tuple[str, ...] = ("a.jpg", "b.jpg")) -> Path:
    for name in images:
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).write_bytes(jpeg())
    (folder / "regioncap_10m.json").write_text(json.dumps(rows))
    return folder


def test_rows_in_any_order_are_one_record_per_image(tmp_path: Path) -> None:
    rows = [
        row("a.jpg", image_id="7"),
        row(COCO, caption="a\ndog"),
        row("a.jpg", (0, 0, 32.5, 24), "all", other=[{"x": 1}]),
        row("b.jpg"),
        row("./a.jpg", (1.0, 2.0, 10.5, 5.0), "him"),
        row(COCO_2017),
    ]
    raw = list_raw(tmp_path / "raw", rows, ("a.jpg", "b.jpg", COCO, COCO_2017))
    tally = convert(regioncap, raw, tmp_path / "out", "train", workers=2)
    records = found(tmp_path / "out")
    assert list(records) == ["regioncap/a.jpg", "coco/9", "regioncap/b.jpg", "coco/25"]
    first, second = records["regioncap/a.jpg"].record.objects
    assert (first.object_id, first.box, first.captions) == ("1", [1.0, 2.0, 11.5, 7.0], ["left man", "him"])
    assert (second.object_id, second.box, second.captions) == ("3", [0.0, 0.0, 32.0, 24.0], ["all"])
    assert records["coco/9"].record.objects[0].captions == ["a dog"]
    assert records["regioncap/b.jpg"].media == jpeg()
    assert (tally.read, tally.used, tally.captions, tally.notes["objects"]) == (6, 6, 6, 5)
    assert tally.notes["rows with the box of another row, put together"] == 1
    assert read_manifest(tmp_path / "out").name == "regioncap"


def test_every_reason_of_rejection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        row("a.jpg"),
        row("a.jpg", (1, 2, 0, 5)),
        row("a.jpg", (20, 2, 20, 5)),
        row("a.jpg", (1, 2, float("nan"), 5)),
        row("a.jpg", [1, 2, 3]),
        row("a.jpg", [1, 2, 3, True]),
        row("a.jpg", None),
        row("a.jpg", caption="..."),
        row("a.jpg", caption=None),
        row(None),
        row(""),
        "a.jpg",
        {"bbox": [1, 2, 3, 4]},
        row("gone.jpg"),
        row("../regioncap_10m.json"),
        row("a#b.jpg"),
        row("a%23b.jpg"),
        *[row("b.jpg", caption="many words " * 9)] * 3,
        row("c\ud800.jpg"),
    ]
    raw = list_raw(tmp_path / "raw", rows, ("a.jpg", "b.jpg", "a#b.jpg", "a%23b.jpg"))
    monkeypatch.setattr(grouping, "MAX_GROUP_BYTES", 300)
    tally = convert(regioncap, raw, tmp_path / "out", "val")
    expected = {
        "box_empty": 5,
        "box_outside_image": 1,
        "no_caption": 2,
        "malformed_row": 4 + 3,
        "image_missing": 1,
        "unsafe_name": 2,
        "duplicate_source": 1,
    }
    assert reasons(tmp_path / "out") == expected == dict(tally.rejected)
    assert (tally.read, tally.used) == (21, 2)
    assert list(found(tmp_path / "out")) == ["regioncap/a.jpg", "regioncap/a%23b.jpg"]
    listed = {row.object_id: row for row in read_rejected(tmp_path / "out/rejected.jsonl")}
    assert (listed["5"].source, listed["5"].detail) == ("regioncap/a.jpg", "bbox must be four numbers, got [1, 2, 3]")
    assert listed["10"].source == "regioncap_10m.json"


def test_a_dry_run_counts_the_same_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = list_raw(tmp_path / "raw", [row("a.jpg"), row("gone.jpg"), row("a.jpg", (3, 3, 3, 3))])
    command = ["prepare", "regioncap", "--raw", str(raw), "--out", str(tmp_path / "out"), "--json"]
    answers = []
    for more in (["--dry-run"], []):
        assert not (tmp_path / "out").exists()
        assert cli_run(*command, *more) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert (answers[0]["read"], answers[0]["used"], answers[0]["rejected"]) == (3, 2, {"image_missing": 1})
    assert {**answers[0], "manifest": 0} == {**answers[1], "manifest": 0}


def test_where_list_and_images_are(tmp_path: Path) -> None:
    raw = list_raw(tmp_path / "raw", [row("images/a.jpg")])
    with pytest.raises(ValueError, match=r"no record could be used \(image_missing: 1\)"):
        convert(regioncap, raw, tmp_path / "x", "train", images=raw / "images")
    assert convert(regioncap, raw, tmp_path / "out", "train", images=raw, name="mine").used == 1
    assert list(found(tmp_path / "out")) == ["mine/images/a.jpg"]
    # Without --images the paths may begin in RAW or in RAW/images.
    both = list_raw(tmp_path / "both", [row("images/a.jpg"), row("b.jpg")])
    assert convert(regioncap, both, tmp_path / "two", "train").used == 2
    assert sorted(found(tmp_path / "two")) == ["regioncap/b.jpg", "regioncap/images/a.jpg"]
    with pytest.raises(ValueError, match=r"nowhere: not found\. The raw folder should look like this"):
        convert(regioncap, raw, tmp_path / "x", "train", images=tmp_path / "nowhere")
    (raw / "regioncap_10m.json").unlink()
    with pytest.raises(ValueError, match="no JSON file; name the list with --annotations FILE"):
        convert(regioncap, raw, tmp_path / "x", "train")


@remedy("; name the list with --annotations FILE")
def test_one_of_several_lists_is_named(tmp_path: Path):
    raw = list_raw(tmp_path / "raw", [row("a.jpg")])
    (raw / "other.json").write_text("[]")
    said: dict[str, Any] = {}
    return (
        lambda: convert(regioncap, raw, tmp_path / "out", "train", overwrite=True, **said),
        lambda _: said.update(annotations=Path("regioncap_10m.json")),
    )


@remedy("--name {}: use letters, digits, hyphens and underscores")
def test_a_name_that_source_ids_cannot_begin_with(tmp_path: Path):
    raw = list_raw(tmp_path / "raw", [row("a.jpg")])
    said = {"name": "a#b"}
    return lambda: convert(regioncap, raw, tmp_path / "out", "train", **said), lambda _: said.update(name="a-b")
