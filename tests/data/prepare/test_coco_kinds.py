"""`rb prepare coco` on every file that it knows: COCO's own, LAVIS's, Flickr30k's; images of 2014 and 2017; other files are sent elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rb.data.formats import read_manifest
from rb.data.prepare import coco
from tests.data.prepare.test_coco import coco_raw, entry
from tests.support.raw_data import cli_run, convert, found, jpeg, reasons

NAME_2014 = "COCO_{}_{:012d}.jpg"


def put(raw: Path, *names: str) -> Path:
    for name in names:
        path = raw / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg())
    return raw


def write(raw: Path, name: str, content: Any) -> Path:
    path = raw / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def official(folder: str, texts: dict[int, list[str]]) -> dict[str, Any]:
    """captions_*.json as COCO ships it: names of 2017 have no folder, the addresses do."""
    rows = [(number, text) for number, said in texts.items() for text in said]
    name = "{1:012d}.jpg" if folder.endswith("2017") else NAME_2014
    return {
        "info": {"description": "COCO 2017 Dataset", "year": 2017, "date_created": "2017/09/01"},
        "licenses": [{"url": "http://creativecommons.org/licenses/by/2.0/", "id": 4, "name": "Attribution License"}],
        "images": [
            {
                "license": 4,
                "file_name": name.format(folder, number),
                "coco_url": f"http://images.cocodataset.org/{folder}/{name.format(folder, number)}",
                "height": 24,
                "width": 32,
                "date_captured": "2013-11-14 17:02:52",
                "flickr_url": "http://farm7.staticflickr.com/6116/a.jpg",
                "id": number,
            }
            for number in texts
        ],
        "annotations": [{"image_id": n, "id": 100 + i, "caption": text} for i, (n, text) in enumerate(rows)][::-1],
    }


def test_cocos_own_files_of_a_year_become_a_set_each(tmp_path: Path, capsys) -> None:
    raw = put(tmp_path / "raw", "train2017/000000000009.jpg", "train2017/000000000025.jpg", "val2017/000000000139.jpg")
    write(raw, "annotations/captions_train2017.json", official("train2017", {9: ["a cube.\n", "one"], 25: ["a ball"]}))
    write(raw, "annotations/captions_val2017.json", official("val2017", {139: ["a room"]}))
    write(raw, "annotations/captions_train2014.json", official("train2014", {9: ["another year"]}))
    assert cli_run("prepare", "coco", "--raw", str(raw), "--out", str(tmp_path / "out"), "--split", "all") == 0
    assert "captions_train2017.json" in (said := capsys.readouterr()).err
    assert "COCO's own captions" in said.err
    train = found(tmp_path / "out/train")
    assert {source: one.record.captions for source, one in train.items()} == {
        "coco/9": ["one", "a cube."],
        "coco/25": ["a ball"],
    }
    assert {one.record.dataset for one in train.values()} == {"coco2017"}
    assert read_manifest(tmp_path / "out/train").name == "coco2017"
    assert list(found(tmp_path / "out/val")) == ["coco/139"]


def test_what_is_wrong_in_cocos_own_file_is_rejected_by_reason(tmp_path: Path) -> None:
    names = [NAME_2014.format("val2014", number) for number in (1, 2, 3)]
    raw = put(tmp_path / "raw", *(f"val2014/{name}" for name in names))
    content = official("val2014", {1: ["a cube", ""], 2: [], 3: ["..."]})
    content["images"] += [
        {"id": "4", "file_name": "a.jpg"},
        5,
        {"id": 6, "file_name": "../../a.jpg"},
        {"id": 8, "file_name": "a" * 5000},
    ]
    content["annotations"] += [{"image_id": 77, "caption": "whose?"}, {"caption": "nobody's"}, 3]
    file = write(tmp_path, "mine.json", content)  # under any name: content says val2014
    tally = convert(coco, raw, tmp_path / "out", "val", annotations=file)
    assert reasons(tmp_path / "out") == {
        "empty_caption": 1,
        "no_caption": 2,
        "unknown_image": 3,
        "unsafe_name": 2,
        "malformed_row": 2,
    }
    assert (tally.read, tally.used, sum(tally.rejected.values())) == (10, 1, 9)
    assert found(tmp_path / "out")["coco/1"].record.dataset == "coco2014"


def lavis(number: int, caption: object, folder: str = "val2014") -> dict[str, Any]:
    return {"caption": caption, "image": f"{folder}/{NAME_2014.format(folder, number)}", "image_id": f"coco_{number}"}


def test_laviss_rows_of_one_caption_or_all(tmp_path: Path) -> None:
    """In LAVIS's own layout: annotations/ and images/. The records are those of Karpathy's file."""
    texts = {1: ("a cube", "Two. "), 2: ("a ball",), 3: ("a room", "a hall")}
    entries = [entry(1, texts=texts[1]), entry(2, "restval", texts[2], "val2014"), entry(3, "val", texts[3], "val2014")]
    theirs = coco_raw(tmp_path / "karpathy", entries)
    raw = tmp_path / "raw"
    for folder in ("train2014", "val2014"):
        shutil.copytree(theirs / folder, raw / "images" / folder)
    rows = [lavis(1, "a cube", "train2014"), lavis(2, "a ball"), lavis(1, "Two. ", "train2014")]
    rows += [{"image": "val2014/cube.jpg", "caption": "no number"}, {"caption": "no image"}, 7]
    write(raw, "annotations/coco_karpathy_train.json", rows)
    write(raw, "annotations/coco_karpathy_val.json", [lavis(3, ["a room", "a hall"])])
    for split in ("train", "val"):
        convert(coco, raw, tmp_path / split, split)
        convert(coco, theirs, tmp_path / f"{split}-2", split)
        one, other = ({s: (i.record, i.media) for s, i in found(tmp_path / f).items()} for f in (split, f"{split}-2"))
        assert one == other
    assert reasons(tmp_path / "train") == {"unknown_image": 1, "malformed_row": 2}


@pytest.mark.parametrize("year", ["2014", "2017"])
def test_karpathys_split_and_cocos_own_find_the_images_of_either_year(year: str, tmp_path: Path) -> None:
    """2017 divides the same images otherwise: what 2014 has in val2014 may be in train2017."""
    places = {
        "2014": ["train2014/COCO_train2014_000000000009.jpg", "val2014/COCO_val2014_000000000042.jpg"],
        "2017": ["val2017/000000000009.jpg", "train2017/000000000042.jpg"],
    }
    raw = put(tmp_path / "raw", *places[year])
    write(raw, "dataset_coco.json", {"images": [entry(9), entry(42, "restval", place="val2014")], "dataset": "coco"})
    convert(coco, raw, tmp_path / "out", "train")
    assert list(found(tmp_path / "out")) == ["coco/9", "coco/42"]
    file = write(tmp_path, "captions_train2017.json", official("train2017", {42: ["a cube"]}))
    convert(coco, raw, tmp_path / "own", "train", annotations=file)
    assert found(tmp_path / "own")["coco/42"].media == jpeg()


def test_flickr30k_has_names_in_place_of_numbers(tmp_path: Path, capsys) -> None:
    images = [
        {
            "sentids": [0, 1],
            "imgid": imgid,
            "sentences": [{"tokens": ["a"], "raw": f"a man {imgid}.", "imgid": imgid, "sentid": imgid}],
            "split": split,
            "filename": name,
        }
        for imgid, (split, name) in enumerate((("train", "1000092795.jpg"), ("test", "36979.jpg"), ("val", "7.jpg")))
    ]
    images.append({**images[1], "filename": None})
    raw = put(tmp_path / "raw", "flickr30k-images/1000092795.jpg", "flickr30k-images/36979.jpg")
    write(raw, "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    words = ["prepare", "coco", "--raw", str(raw), "--out", str(tmp_path / "out"), "--split", "test"]
    assert cli_run(*words) == 0
    assert "Karpathy's split of Flickr30k" in capsys.readouterr().err
    records = found(tmp_path / "out")
    assert list(records) == ["flickr30k/36979"]
    assert (records["flickr30k/36979"].record.dataset, read_manifest(tmp_path / "out").name) == ("flickr30k",) * 2
    assert reasons(tmp_path / "out") == {"unsafe_name": 1}
    convert(coco, tmp_path, tmp_path / "train", "train", annotations=raw / "dataset_flickr30k.json", images=raw / "flickr30k-images")  # fmt: skip
    assert list(found(tmp_path / "train")) == ["flickr30k/1000092795"]
    with pytest.raises(ValueError, match=r"flickr30k-images.*: not found"):
        convert(coco, tmp_path, tmp_path / "no", "train", annotations=raw / "dataset_flickr30k.json")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("coco_karpathy_test_gt.json", {"images": [{"id": 1}], "annotations": []}, "`rb score --coco-results"),
        ("a.json", {"images": [{"id": 0, "open_images_id": "0", "file_name": "0.jpg"}]}, "`rb prepare nocaps`"),
        ("a.json", [{"question_id": 1, "question": "?", "image": "a"}], "`rb prepare vqav2`"),
        ("a.json", [{"image_id": 1, "caption": "?"}], "`rb score --coco-results FILE --annotations FILE`"),
        ("a.json", [3], "another file than the data set ships"),
        ("a.json", {"images": []}, "another file than the data set ships"),
        ("a.json", {"annotations": []}, "field 'images' is missing"),
        ("rows.json", [lavis(1, "a")], "rows.json: which split it holds is not in its name"),
        ("instances_val2014.json", {"images": [{"id": 1, "file_name": NAME_2014.format("val2014", 1)}], "annotations": [{"image_id": 1, "bbox": []}]}, "give captions_"),
    ],
)  # fmt: skip
def test_other_files_are_named_with_what_reads_them(name: str, content: Any, message: str, tmp_path: Path) -> None:
    file = write(tmp_path, name, content)
    with pytest.raises(ValueError, match=message):
        convert(coco, tmp_path, tmp_path / "out", "val", annotations=file)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_images_that_is_in_neither_year_is_an_error(tmp_path: Path) -> None:
    raw = put(tmp_path / "raw", "val2014/COCO_val2014_000000000001.jpg")
    write(raw, "dataset_coco.json", {"images": [entry(9)], "dataset": "coco"})
    with pytest.raises(ValueError, match=r"train2014: not found"):
        convert(coco, raw, tmp_path / "out", "train")
    with pytest.raises(ValueError, match=r"split 'test'; it has train"):
        convert(coco, raw, tmp_path / "out", "test")


def test_a_folder_that_none_can_be_costs_its_images_only(tmp_path: Path) -> None:
    raw = put(tmp_path / "raw", "train2014/COCO_train2014_000000000009.jpg")
    entries = [entry(9), entry(10, filepath="x" * 5000), entry(11, filepath="../raw")]
    write(raw, "dataset_coco.json", {"images": entries})
    convert(coco, raw, tmp_path / "out", "train")
    assert reasons(tmp_path / "out") == {"unsafe_name": 2}


def test_an_image_in_no_split_and_a_file_of_another_kind_are_said(tmp_path: Path) -> None:
    raw = put(tmp_path / "raw", "train2014/COCO_train2014_000000000009.jpg")
    write(raw, "dataset_coco.json", {"images": [entry(9), entry(10, None), 3], "dataset": "coco"})
    tally = convert(coco, raw, tmp_path / "out", "train")
    assert tally.notes["images without a split, in no set"] == 2
    raw = put(tmp_path / "mixed", "train2014/COCO_train2014_000000000009.jpg")
    write(raw, "coco_karpathy_train.json", [lavis(9, "a cube", "train2014")])
    write(raw, "coco_karpathy_val.json", {"images": [entry(9, "val")]})
    with pytest.raises(ValueError, match=r"coco_karpathy_val.json: Karpathy's split of COCO, but .*train.json: LAVIS"):
        convert(coco, raw, tmp_path / "no", "train")
