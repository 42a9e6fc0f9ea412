"""The COCO converter on hand-made raw files: true formats, every reason of rejection, clear errors."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import pytest
from PIL import Image

from rb.data.prepare import coco
from tests.support.raw_data import convert, found, jpeg, reasons


def entry(number, split="train", texts=("a red cube",), place="train2014", **changes):
    base = {"filepath": place, "filename": f"COCO_{place}_{number:012d}.jpg", "cocoid": number, "split": split}
    return {**base, "sentences": [{"raw": t, "tokens": t.split(), "sentid": 1} for t in texts], **changes}


def coco_raw(folder: Path, entries, files=None):
    folder.mkdir()
    (folder / "dataset_coco.json").write_text(json.dumps({"images": entries, "dataset": "coco"}))
    for place in ("train2014", "val2014"):
        (folder / place).mkdir()
    for item in entries:
        name = f"{item['filepath']}/{item['filename']}"
        (folder / name).write_bytes((files or {}).get(item["cocoid"], jpeg()))
    return folder


def test_coco_keeps_original_bytes_captions_and_restval(tmp_path):
    text = "A man,\u2028with\na “red” cube\t!"
    raw = coco_raw(
        tmp_path / "raw",
        [entry(1, texts=(text, "Two. ")), entry(2, "restval", place="val2014"), entry(3, "val", place="val2014")],
        {1: jpeg(20, 10, "PNG")},
    )
    tally = convert(coco, raw, tmp_path / "train", "train")
    records = found(tmp_path / "train")
    assert list(records) == ["coco/1", "coco/2"]
    one = records["coco/1"]
    assert one.media == jpeg(20, 10, "PNG")
    assert (one.extension, one.record.width, one.record.height) == ("png", 20, 10)
    assert one.record.captions == ["A man, with a “red” cube !", "Two."]
    assert (tally.read, tally.used, tally.captions) == (2, 2, 3)
    convert(coco, raw, tmp_path / "strict", "train", no_restval=True)
    assert list(found(tmp_path / "strict")) == ["coco/1"]
    convert(coco, raw, tmp_path / "val", "val")
    assert list(found(tmp_path / "val")) == ["coco/3"]


def test_coco_rejects(tmp_path):
    bomb = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.new("1", (20_000, 9_000)).save(bomb, "PNG")
    entries = [
        entry(1),
        entry(2, texts=("...", " \n")),
        entry(3, texts=()),
        entry(4, sentences="none"),
        entry(5),  # no file
        entry(6),  # cut short
        entry(7),  # text
        entry(8),  # a small file of 180 million pixels
        entry(1),  # again
        entry(9, cocoid="9"),
        entry(10, cocoid=None),
        entry(11, filename=7),
    ]
    raw = coco_raw(tmp_path / "raw", entries[:8], {6: jpeg()[:200], 7: b"<html>not found</html>", 8: bomb.getvalue()})
    (raw / "train2014/COCO_train2014_000000000005.jpg").unlink()
    for number, name in enumerate(("../outside.jpg", "/etc/passwd", "a/../../outside.jpg", "", "a\nb", "..\\x"), 20):
        entries.append(entry(number, filename=name))
    (tmp_path / "outside.jpg").write_bytes(jpeg())
    for name in ("9", "10"):
        (raw / f"train2014/COCO_train2014_{int(name):012d}.jpg").write_bytes(jpeg())
    (raw / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    tally = convert(coco, raw, tmp_path / "out", "train")
    assert reasons(tmp_path / "out") == {
        "no_caption": 3,
        "image_missing": 1,
        "unreadable_image": 3,
        "duplicate_source": 1,
        "unknown_image": 2,
        "unsafe_name": 7,
    }
    assert (tally.read, tally.used) == (18, 1)
    assert list(found(tmp_path / "out")) == ["coco/1"]


def test_one_empty_caption_is_listed_but_costs_no_image(tmp_path):
    raw = coco_raw(tmp_path / "raw", [entry(1, texts=("a cube", "!!", "a ball"))])
    tally = convert(coco, raw, tmp_path / "out", "train")
    assert found(tmp_path / "out")["coco/1"].record.captions == ["a cube", "a ball"]
    assert reasons(tmp_path / "out") == {"empty_caption": 1}
    assert (tally.used, sum(tally.rejected.values()), tally.notes["empty captions left out"]) == (1, 0, 1)


def test_coco_wrong_files_are_clear_errors(tmp_path):
    raw = coco_raw(tmp_path / "raw", [entry(1)])
    with pytest.raises(ValueError, match=r"no image of split 'test'"):
        convert(coco, raw, tmp_path / "out", "test")
    with pytest.raises(ValueError, match=r"split 'testA' is not one of train, val, test"):
        convert(coco, raw, tmp_path / "out", "testA")
    (raw / "train2014").rename(raw / "elsewhere")
    with pytest.raises(ValueError, match=r"train2014: not found"):
        convert(coco, raw, tmp_path / "out", "train")
    for text, message in (
        ("{", "not valid JSON"),
        ("[" * 200_000, "not valid JSON"),
        ("[]", "its first row is no image with a caption"),
        ("{}", "field 'images' is missing"),
        ('{"images": 3}', "must be a list"),
    ):
        (raw / "dataset_coco.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            convert(coco, raw, tmp_path / "out", "train")
    assert not (tmp_path / "out").exists()


def test_a_file_without_the_split_says_what_it_has(tmp_path):
    raw = coco_raw(tmp_path / "raw", [entry(1, "val", place="val2014"), entry(2, "test", place="val2014")])
    with pytest.raises(ValueError, match=r"no image of split 'train'; it has test, val"):
        convert(coco, raw, tmp_path / "out", "train")
    plain = coco_raw(tmp_path / "plain", [entry(1, None)])  # captions_train2014.json under Karpathy's name
    with pytest.raises(ValueError, match="its images have no field 'split', so this is not Karpathy's file"):
        convert(coco, plain, tmp_path / "out", "train")
