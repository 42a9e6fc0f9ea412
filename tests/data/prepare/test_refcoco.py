"""The RefCOCO converter on hand-made raw files: true formats, every reason of rejection, clear errors."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from rb.data.formats import read_manifest, read_rejected
from rb.data.prepare import refcoco
from tests.support.raw_data import convert, found, jpeg, reasons
from tests.support.remedies import remedy


def ref(ref_id, ann_id, image_id, split="train", texts=("left man",), **changes):
    sentences = [{"sent": t, "raw": t.upper(), "tokens": t.split(), "sent_id": k} for k, t in enumerate(texts)]
    name = f"COCO_train2014_{image_id:012d}_{ref_id}.jpg"
    base = {"ref_id": ref_id, "ann_id": ann_id, "image_id": image_id, "split": split, "file_name": name}
    return {**base, "sentences": sentences, "sent_ids": [0], "category_id": 1, **changes}


def refcoco_raw(folder: Path, refs, boxes, sizes=None, split_by="google", files=None):
    """``boxes``: ann_id -> (image_id, bbox)."""
    images = sorted({image for image, _ in boxes.values()})
    content = {
        "images": [
            {"id": i, "file_name": f"COCO_train2014_{i:012d}.jpg", "width": w, "height": h}
            for i in images
            for w, h in [(sizes or {}).get(i, (32, 24))]
        ],
        "annotations": [
            {"id": k, "image_id": image, "bbox": box, "segmentation": [[1.0] * 8]} for k, (image, box) in boxes.items()
        ],
    }
    (folder / "images/train2014").mkdir(parents=True)
    (folder / "instances.json").write_text(json.dumps(content))
    data = refs if isinstance(refs, bytes) else pickle.dumps(refs, protocol=2)
    (folder / f"refs({split_by}).p").write_bytes(data)
    for i in images:
        (folder / f"images/train2014/COCO_train2014_{i:012d}.jpg").write_bytes((files or {}).get(i, jpeg()))
    return folder


def test_refcoco_is_one_record_per_image_with_all_objects(tmp_path):
    raw = refcoco_raw(
        tmp_path / "raw",
        [
            ref(1, 11, 1, texts=("left man", "man\nin red")),
            ref(2, 12, 1),
            ref(3, 11, 1, texts=("him",)),
            ref(4, 21, 2, "val"),
        ],
        {11: (1, [1.5, 2, 10.25, 5]), 12: (1, [3, 4, 5, 6]), 21: (2, [0, 0, 32, 24])},
    )
    tally = convert(refcoco, raw, tmp_path / "out", "train")
    records = found(tmp_path / "out")
    assert list(records) == ["coco/1"]
    first, second = records["coco/1"].record.objects
    assert (first.object_id, first.box, first.captions) == (
        "11",
        [1.5, 2.0, 11.75, 7.0],
        ["left man", "man in red", "him"],
    )
    assert second.object_id == "12"
    assert (tally.read, tally.used, tally.captions, tally.notes["objects"]) == (3, 3, 4, 2)
    assert read_manifest(tmp_path / "out").name == "refcoco_google"
    convert(refcoco, raw, tmp_path / "raw_text", "train", sentence="raw")
    assert found(tmp_path / "raw_text")["coco/1"].record.objects[0].captions[0] == "LEFT MAN"


def test_refcoco_reads_what_python_2_wrote(tmp_path):
    old = (
        b"(lp0\n(dp1\nS'sent_ids'\np2\n(lp3\nI0\nasS'file_name'\np4\nS'COCO_train2014_000000000001_16.jpg'\np5\nsS'ann_id'\np6\nI11\n"
        b"sS'ref_id'\np7\nI1\nsS'image_id'\np8\nI1\nsS'split'\np9\nS'testA'\np10\nsS'sentences'\np11\n(lp12\n(dp13\nS'tokens'\np14\n"
        b"(lp15\nS'lady'\np16\nasS'raw'\np17\nS'caf\\xe9 lady'\np18\nsS'sent_id'\np19\nI0\nsS'sent'\np20\nVlady\np21\nsasS'category_id'\np22\nI1\nsa."
    )
    raw = refcoco_raw(tmp_path / "raw", old, {11: (1, [1, 2, 3, 4])}, split_by="unc")
    convert(refcoco, raw, tmp_path / "a", "testA", split_by="unc")
    assert found(tmp_path / "a")["coco/1"].record.objects[0].captions == ["lady"]
    # As in the refer tool, "test" is testA and testB together.
    convert(refcoco, raw, tmp_path / "b", "test", split_by="unc", sentence="raw")
    record = found(tmp_path / "b")["coco/1"].record
    assert (record.split, record.objects[0].captions) == ("test", ["café lady"])


def test_refcoco_refuses_a_pickle_with_code_and_reads_json_instead(tmp_path):
    rows = [ref(np.int64(1), 11, 1)]
    raw = refcoco_raw(tmp_path / "raw", rows, {11: (1, [1, 2, 3, 4])})
    with pytest.raises(ValueError, match=r"refs\(google\)\.p: refused.*convert it to JSON"):
        convert(refcoco, raw, tmp_path / "out", "train")
    assert not (tmp_path / "out").exists()
    (raw / "refs(google).json").write_text(json.dumps([ref(1, 11, 1)]))
    assert convert(refcoco, raw, tmp_path / "out", "train").used == 1


def test_refcoco_rejects(tmp_path):
    boxes = {
        11: (1, [1, 2, 3, 4]),
        12: (1, [1, 2, 0, 4]),
        13: (1, [30, 2, 30, 4]),
        14: (1, [5, 5, float("nan"), 4]),
        15: (1, [5, 5, 5]),
        16: (1, [-0.6, -0.4, 33.0, 24.9]),  # rounding: cut to the image
        17: (1, [5, 5, -3, 4]),
        21: (2, [1, 2, 3, 4]),
        31: (3, [1, 2, 3, 4]),
        32: (3, [1, 2, 3, 5]),
        41: (4, [1, 2, 3, 4]),
    }
    refs = [
        ref(1, 11, 1),
        ref(2, 12, 1),
        ref(3, 13, 1),
        ref(4, 14, 1),
        ref(5, 15, 1),
        ref(6, 16, 1),
        ref(7, 17, 1),
        ref(8, 99, 1),  # no such annotation
        ref(9, "odd\u200b\n" * 99, 1),
        ref(10, 21, 1),  # an annotation of image 2
        ref(11, 11, 77),  # no such image
        ref(12, 11, 1, texts=("", "...\u2028")),
        ref(1, 11, 1),  # the same reference again
        ref(13, 21, 2),  # no file
        ref(14, 31, 3),  # cut short
        ref(15, 32, 3),
        ref(16, 41, 4),  # another size
        ref(17, 11, 1, sentences=None),
    ]
    raw = refcoco_raw(tmp_path / "raw", refs, boxes, {4: (32, 25)}, files={3: jpeg()[:100]})
    (raw / "images/train2014/COCO_train2014_000000000002.jpg").unlink()
    tally = convert(refcoco, raw, tmp_path / "out", "train")
    expected = {
        "box_empty": 4,
        "box_outside_image": 1,
        "unknown_annotation": 2,
        "annotation_of_other_image": 1,
        "unknown_image": 1,
        "no_caption": 2,
        "duplicate_source": 1,
        "image_missing": 1,
        "unreadable_image": 2,
        "image_size_mismatch": 1,
    }
    assert reasons(tmp_path / "out") == expected == dict(tally.rejected)
    assert (tally.read, tally.used) == (18, 2)
    assert tally.notes["boxes cut to the image (1 px at most)"] == 1
    rows = found(tmp_path / "out")["coco/1"].record.objects
    assert [row.box for row in rows] == [[1, 2, 4, 6], [0, 0, 32, 24]]
    by_detail = {row.object_id: row for row in read_rejected(tmp_path / "out/rejected.jsonl")}
    assert by_detail["13"].source == "coco/1"
    assert "32 x 24" in by_detail["13"].detail


def test_refcoco_shared_images_are_counted_and_dropped_on_demand(tmp_path):
    boxes = {k: (k, [1, 2, 3, 4]) for k in (1, 2, 3)}
    refs = [ref(1, 1, 1), ref(2, 2, 2), ref(3, 3, 3, "val"), ref(4, 2, 2, "test", texts=("him",))]
    raw = refcoco_raw(tmp_path / "raw", refs, boxes)
    kept = convert(refcoco, raw, tmp_path / "kept", "train")
    assert (kept.used, kept.notes["images shared with another split"]) == (2, 1)
    dropped = convert(refcoco, raw, tmp_path / "dropped", "train", drop_shared_images=True)
    assert (dropped.used, dropped.notes["images shared with another split"]) == (1, 1)
    assert reasons(tmp_path / "dropped") == {"shared_image": 1}
    test = convert(refcoco, raw, tmp_path / "test", "test")
    assert test.notes["images shared with train"] == 1
    with pytest.raises(ValueError, match="is for split 'train'"):
        convert(refcoco, raw, tmp_path / "x", "test", drop_shared_images=True)
    with pytest.raises(ValueError, match="no split 'testA'; it has test, train, val"):
        convert(refcoco, raw, tmp_path / "x", "testA")


def test_refcoco_finds_the_refer_tool_s_folders(tmp_path):
    inner = refcoco_raw(tmp_path / "data/refcoco+", [ref(1, 11, 1)], {11: (1, [1, 2, 3, 4])}, split_by="unc")
    (tmp_path / "data/images/mscoco").mkdir(parents=True)
    (inner / "images").rename(tmp_path / "data/images/mscoco/images")
    convert(refcoco, tmp_path / "data", tmp_path / "out", "train", name="refcoco+", split_by="unc")
    assert read_manifest(tmp_path / "out").name == "refcoco_plus_unc"
    with pytest.raises(ValueError, match=r"refs\(google\)\.p: not found"):
        convert(refcoco, tmp_path / "data", tmp_path / "out2", "train", name="refcoco+")


def test_an_empty_result_names_three_items_and_keeps_the_list(tmp_path):
    """Of different reasons where there are some; the same command works once the cause is mended."""
    boxes = {11: (1, [1, 2, 9, 9]), 21: (2, [1, 2, 9, 9]), 31: (3, [1, 2, 0, 9]), 41: (4, [1, 2, 9, 9])}
    raw = refcoco_raw(tmp_path / "raw", [ref(k, 10 * k + 1, k) for k in (1, 2, 3, 4)], boxes, files={4: b"GIF89a"})
    images = raw / "images/train2014"
    for number in (1, 2):
        (images / f"COCO_train2014_{number:012d}.jpg").rename(raw / f"{number}.jpg")
    with pytest.raises(
        ValueError, match=r"no record could be used \(box_empty: 1, image_missing: 2, unreadable_image: 1\)"
    ) as caught:
        convert(refcoco, raw, tmp_path / "out", "train")
    text = str(caught.value)
    assert f"  coco/1, object 11: image_missing: {images}/COCO_train2014_000000000001.jpg: No such file" in text
    assert "  coco/3, object 31: box_empty: annotation 31" in text
    assert f"  coco/4, object 41: unreadable_image: {images}/COCO_train2014_000000000004.jpg" in text
    assert f"All of them are in {tmp_path / 'out/rejected.jsonl'}" in text
    assert len(read_rejected(tmp_path / "out/rejected.jsonl")) == 4
    assert "0x" not in (tmp_path / "out/rejected.jsonl").read_text()
    (raw / "1.jpg").rename(images / "COCO_train2014_000000000001.jpg")
    assert convert(refcoco, raw, tmp_path / "out", "train").used == 1
    # An older set stays as it is when the new result is empty.
    before = (tmp_path / "out/manifest.json").read_bytes()
    (images / "COCO_train2014_000000000001.jpg").unlink()
    with pytest.raises(ValueError, match=r"All of them are in .*out\.rejected\.jsonl"):
        convert(refcoco, raw, tmp_path / "out", "train", overwrite=True)
    assert (tmp_path / "out/manifest.json").read_bytes() == before
    assert len(read_rejected(tmp_path / "out.rejected.jsonl")) == 4


def test_refs_without_splits_are_named(tmp_path):
    boxes = {11: (1, [1, 2, 9, 9])}
    raw = refcoco_raw(tmp_path / "raw", [ref(1, 11, 1, split=None)], boxes)
    with pytest.raises(ValueError, match=r"refs\(google\)\.p: its rows have no field 'split'"):
        convert(refcoco, raw, tmp_path / "out", "train")
    other = refcoco_raw(tmp_path / "other", [ref(1, 11, 1, split="val")], boxes)
    with pytest.raises(ValueError, match=r"no split 'train'; it has val"):
        convert(refcoco, other, tmp_path / "out", "train")
    assert convert(refcoco, other, tmp_path / "out", "val", images=other / "images").used == 1, (
        "as `rb prepare coco` is given it"
    )


@remedy("not found, but those of another split are there: say --split-by {}")
def test_another_split_s_references(tmp_path):
    raw = refcoco_raw(tmp_path / "raw", [ref(1, 11, 1)], {11: (1, [1, 2, 9, 9])}, split_by="unc")
    options: dict[str, str] = {}
    return (
        lambda: convert(refcoco, raw, tmp_path / "out", "train", **options),
        lambda said: options.update(split_by=said.found(r"say --split-by (\w+)")),
    )
