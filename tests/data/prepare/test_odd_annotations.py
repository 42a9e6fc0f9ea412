"""Annotations that a converter must not believe, nor end at: ids that come twice, names and texts that no shard holds, files that grow."""

from __future__ import annotations

import json
import os
import pickle
import struct
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from rb.data import shards
from rb.data.prepare import coco, coco_files, custom, parquet_files, proposals, refcoco, regioncap, vqav2
from rb.data.prepare.array_pickle import ArrayPickle
from rb.data.prepare.clouds import read_cloud
from rb.data.prepare.common import RejectedError
from rb.data.prepare.parquet_files import parquet_columns, read_parquet
from rb.data.prepare.proposals import read_proposals
from rb.data.prepare.scannet_files import read_alignment
from rb.data.prepare.tables import read_coco, read_csv
from rb.data.prepare.xml_files import read_xml
from rb.sources.cloud_files import parse_cloud
from rb.sources.points import PointsError
from tests.support.disks import small_disk
from tests.support.raw_data import convert, convert_plan, found, jpeg, reasons, rejected_rows
from tests.support.remedies import remedy

MIB = 1 << 20
Attempt = tuple[Callable[[], Any], Callable[[Any], Any]]


def photos(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(jpeg())


def train2014(number: int) -> str:
    return f"COCO_train2014_{number:012d}.jpg"


# One record that a shard cannot hold costs itself only.


def test_a_record_that_is_too_large_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos(tmp_path / "images", "a.jpg", "b.jpg")
    rows = [{"image": "a.jpg", "bbox": [1, 1, 5, 5], "caption": "a cat"}]
    rows += [{"image": "b.jpg", "bbox": [1, 1, 5 + k / 100, 5], "caption": "a dog"} for k in range(200)]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    monkeypatch.setattr(shards, "MAX_RECORD_BYTES", 10_000)
    tally = convert(regioncap, tmp_path, tmp_path / "out", "train")
    assert (tally.read, tally.used, tally.rejected) == (201, 1, {"record_unfit": 200})
    assert list(found(tmp_path / "out")) == ["regioncap/a.jpg"]
    assert "a record has at most 10,000" in rejected_rows(tmp_path / "out")[0].detail


def test_half_a_character_in_an_answer_costs_its_question(tmp_path: Path) -> None:
    photos(tmp_path / "train2014", train2014(9))
    asked = [{"question_id": k, "image_id": 9, "question": "what is it?"} for k in (1, 2)]
    said = [{"question_id": 1, "image_id": 9, "answers": [{"answer": "cat"}] * 10, "question_type": "\ud800"}]
    said += [{"question_id": 2, "image_id": 9, "answers": [{"answer": "\ud800"}] * 10}]
    (tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json").write_text(json.dumps({"questions": asked}))
    (tmp_path / "v2_mscoco_train2014_annotations.json").write_text(json.dumps({"annotations": said}))
    convert(vqav2, tmp_path, tmp_path / "out", "train")
    (question,) = found(tmp_path / "out")["coco/9"].record.questions
    assert (question.question_id, question.question_type) == (1, None)
    assert reasons(tmp_path / "out") == {"no_answer": 1}


def test_a_file_name_that_no_disk_takes_is_rejected(tmp_path: Path) -> None:
    photos(tmp_path / "train2014", train2014(9))
    rows = [{"image": f"train2014/{train2014(9)}", "caption": "a cat"}]
    rows += [
        {"image": "x" * 300 + "_12.jpg", "caption": "a dog"},
        {"image": "\xe9" * 200 + "_13.jpg", "caption": "a dog"},
    ]
    (tmp_path / "coco_karpathy_train.json").write_text(json.dumps(rows))
    assert convert(coco, tmp_path, tmp_path / "out", "train").used == 1
    assert reasons(tmp_path / "out") == {"unsafe_name": 2}


def test_a_pipe_among_the_images_is_not_waited_for(tmp_path: Path) -> None:
    photos(tmp_path / "images", "a.jpg")
    os.mkfifo(tmp_path / "images" / "b.jpg")
    rows = [{"image": name, "bbox": [1, 1, 5, 5], "caption": "a cat"} for name in ("a.jpg", "b.jpg")]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    assert convert(regioncap, tmp_path, tmp_path / "out", "train").used == 1
    os.mkfifo(tmp_path / "cloud.npy")
    for read in (lambda path: read_cloud(path, 1), read_xml):
        with pytest.raises((RejectedError, ValueError), match=r"cloud\.npy: is a pipe"):
            read(tmp_path / "cloud.npy")


@pytest.mark.parametrize("there", [True, False])
def test_a_link_to_the_folder_of_shards_stays(tmp_path: Path, there: bool) -> None:
    photos(tmp_path / "images", "a.jpg")
    (tmp_path / "list.json").write_text(json.dumps([{"image": "a.jpg", "bbox": [1, 1, 5, 5], "caption": "a cat"}]))
    disk, link = tmp_path / "disk" / "sets", tmp_path / "out"
    (disk if there else disk.parent).mkdir(parents=True)
    link.symlink_to(disk)
    convert(regioncap, tmp_path, link, "train")
    assert link.is_symlink()
    assert list(found(disk)) == ["regioncap/a.jpg"]
    assert [path.name for path in disk.parent.iterdir()] == ["sets"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("leave", [8192, 65536])  # the record does not fit, or the shard's end
def test_a_full_disk_names_the_set(tmp_path: Path, leave: int) -> None:
    photos(tmp_path / "images", "a.jpg")
    (tmp_path / "list.json").write_text(
        json.dumps([{"image": "a.jpg", "bbox": [1, 1, 5, 5], "caption": "a " * 60_000}])
    )
    with small_disk(tmp_path / "disk", "256k") as disk:
        disk.fill(leave)
        with pytest.raises(OSError, match=r"disk/\.?out[a-z.]*: cannot be written \(No space left on device"):
            convert(regioncap, tmp_path, disk.path / "out", "train")
        assert [path.name for path in disk.path.iterdir()] == ["filler"]


# A number that two things have says nothing of either.


def test_ids_that_come_twice_in_instances_json(tmp_path: Path) -> None:
    photos(tmp_path / "images" / "train2014", train2014(1), train2014(2), train2014(3))
    images = [{"id": k, "file_name": train2014(k), "width": 32, "height": 24} for k in (1, 2, 3)]
    images += [images[0], images[1] | {"file_name": train2014(3)}]  # equal rows are one
    boxes = [{"id": 10 + k, "image_id": k, "bbox": [1, 1, 5, 5]} for k in (1, 2, 3)]
    boxes += [boxes[2] | {"bbox": [9, 9, 5, 5]}]
    refs = [
        {"ref_id": k, "ann_id": 10 + k, "image_id": k, "split": "train", "sentences": [{"sent": "a cat"}]}
        for k in (1, 2, 3)
    ]
    (tmp_path / "instances.json").write_text(json.dumps({"images": images, "annotations": boxes}))
    (tmp_path / "refs(google).p").write_bytes(pickle.dumps(refs, 2))
    convert(refcoco, tmp_path, tmp_path / "out", "train")
    assert list(found(tmp_path / "out")) == ["coco/1"]
    assert reasons(tmp_path / "out") == {"unknown_image": 1, "unknown_annotation": 1}


def test_two_alignments_of_a_scan(tmp_path: Path) -> None:
    line, other = (f"axisAlignment = {a} 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1" for a in (1, 2))
    for end in ("\n", "\r", "\r\n"):
        (tmp_path / "s.txt").write_text(f"a = 1{end}{line}{end}{line} {end}")
        assert read_alignment(tmp_path / "s.txt") == pytest.approx(np.eye(4))
        (tmp_path / "s.txt").write_text(f"{line}{end}{other}{end}")
        with pytest.raises(RejectedError, match="2 different lines of axisAlignment"):
            read_alignment(tmp_path / "s.txt")


def test_two_annotations_of_a_question(tmp_path: Path) -> None:
    photos(tmp_path / "train2014", train2014(9))
    asked = [{"question_id": k, "image_id": 9, "question": "what is it?"} for k in (1, 2)]
    said = [{"question_id": k, "image_id": 9, "answers": [{"answer": "cat"}] * 10} for k in (1, 1, 2)]
    said += [said[2] | {"answers": [{"answer": "dog"}] * 10}]
    (tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json").write_text(json.dumps({"questions": asked}))
    (tmp_path / "v2_mscoco_train2014_annotations.json").write_text(json.dumps({"annotations": said}))
    convert(vqav2, tmp_path, tmp_path / "out", "train")
    assert [one.question_id for one in found(tmp_path / "out")["coco/9"].record.questions] == [1]
    assert "two different annotations" in rejected_rows(tmp_path / "out")[0].detail


def test_ids_of_ones_own_coco_file(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2.0, "file_name": "b.jpg"}, {"id": [3], "file_name": "c.jpg"}]
    images += [{"id": 4, "file_name": "d.jpg"}, {"id": 4, "file_name": "e.jpg"}]
    path = tmp_path / "own.json"
    asked: list[Any] = [1, 1.0, 2, True, "1", [3], {}, None, 4]
    path.write_text(json.dumps({"images": images, "annotations": [{"image_id": k, "caption": "a"} for k in asked]}))
    rows = [row for _, row in read_coco(path, Counter())]
    assert [row["file_name"] for row in rows if isinstance(row, dict)] == ["a.jpg", "a.jpg", "b.jpg"]
    assert [str(row)[-10:] for row in rows if not isinstance(row, dict)] == ["the images"] * 5 + ["two images"]


def test_rows_with_a_number_beside_rows_without(tmp_path: Path) -> None:
    photos(tmp_path / "images" / "train2014", train2014(1))
    row = {"ann_id": 2, "ref_id": 1, "image_id": 1, "split": "train", "sentences": [{"sent": "a cat", "raw": "A"}]}
    row |= {"bbox": [1.0, 1.0, 5.0, 5.0], "raw_image_info": "{}"}
    table = pyarrow.Table.from_pylist([row, row | {"ann_id": None, "bbox": [2.0, 2.0, 6.0, 6.0]}])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert convert(refcoco, tmp_path, tmp_path / "out", "train").used == 1  # the second row's number would be 2, too
    assert reasons(tmp_path / "out") == {"malformed_row": 1}


# One's own table.


def own(tmp_path: Path, text: str, **options: Any) -> dict[str, Any]:
    photos(tmp_path / "images", "a.jpg", "b.jpg")
    (tmp_path / "own.csv").write_text(text)
    raw = custom.open_raw(
        csv=tmp_path / "own.csv", images=tmp_path / "images", name="own", out=tmp_path / "out", most_bad=0.9, **options
    )
    for split in raw.splits:
        convert_plan(raw.plan(split), tmp_path / "out" / split)
    return {split: found(tmp_path / "out" / split) for split in raw.splits}


def test_one_file_is_one_source_in_one_split(tmp_path: Path) -> None:
    sets = own(
        tmp_path, "file,caption,split\na.jpg,a cat,train\n./a.jpg,a dog,train\n.//a.jpg,a cow,val\nb.jpg,a hen,val\n"
    )
    assert {split: list(one) for split, one in sets.items()} == {"train": ["own/a.jpg"], "val": ["own/b.jpg"]}
    assert sets["train"]["own/a.jpg"].record.captions == ["a cat", "a dog"]


def test_an_object_name_on_two_lines_costs_its_row(tmp_path: Path) -> None:
    text = 'file,caption,id,x1,y1,x2,y2\na.jpg,a cat,"x\ny",1,1,5,5\na.jpg,a dog,2,1,1,9,9\n'
    (item,) = own(tmp_path, text, boxes="xyxy")["train"]["own/a.jpg"].record.objects
    assert item.object_id == "2"


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ('"a cat\nb.jpg,a dog\nc.jpg,a cow\n', ["a dog", "a cow"]),  # to the end of the file
        ('"a cat\nb.jpg,a dog\nc.jpg,"a cow"\n', ["a dog", "a cow"]),  # to another row's quote
        ('"a\ncat"\nb.jpg,a dog\n', ["a\ncat", "a dog"]),  # two lines in quotes
        ('"a" cat\nb.jpg,"a ""dog"""\n', ["a cat", 'a "dog"']),
        ('"a cat' + "\nb.jpg,a dog" * 60 + '\nc.jpg,"\n', ["a dog"] * 60),
    ],
)
def test_a_quote_that_is_never_closed_swallows_no_rows(tmp_path: Path, text: str, captions: list[str]) -> None:
    (tmp_path / "own.csv").write_text(f"file,caption\na.jpg,{text}")
    rows = [row for _, row in read_csv(tmp_path / "own.csv", Counter())]
    assert [row["caption"] for row in rows if isinstance(row, dict)] == captions
    assert len(rows) - len(captions) <= 2


# Files of a few bytes that grow.


def traced(read: Any) -> int:
    tracemalloc.start()
    try:
        read()
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def parquet(path: Path, table: pyarrow.Table) -> Path:
    pyarrow.parquet.write_table(table, path, compression="zstd")
    return path


def repeated(text: str, count: int) -> pyarrow.Array:
    """One text ``count`` times, as Parquet stores it."""
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * count, pyarrow.int32()), [text])


def test_equal_texts_of_a_parquet_file_stay_small(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", pyarrow.table({"a": repeated("x" * MIB, 500)}))
    assert path.stat().st_size < 4000
    before = pyarrow.default_memory_pool().max_memory()
    peak = traced(lambda: [len(row["a"]) for _, row in read_parquet(path, Counter()) if isinstance(row, dict)])
    assert peak < 64 * MIB
    assert pyarrow.default_memory_pool().max_memory() - before < 64 * MIB


@pytest.mark.parametrize("nested", [False, True])
def test_rows_of_a_parquet_file_that_unpack_to_too_much(tmp_path: Path, nested: bool) -> None:
    column: Any = repeated("x" * (9 * MIB), 40)
    if nested:
        column = pyarrow.ListArray.from_arrays([0, 40], column)
    path = parquet(tmp_path / "a.parquet", pyarrow.table({"a": column}))
    with pytest.raises(ValueError, match=r"a\.parquet: .* rows unpack to [\d,]+ bytes, at most 134,217,728 are read"):
        list(read_parquet(path, Counter()))


def test_columns_and_values_of_a_parquet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twice = pyarrow.Table.from_arrays([pyarrow.array(["x"]), pyarrow.array(["y"])], names=["a", "a"])
    for read in (parquet_columns, lambda path: list(read_parquet(path, Counter()))):
        with pytest.raises(ValueError, match=r"a\.parquet: column 'a' comes twice"):
            read(parquet(tmp_path / "a.parquet", twice))
    late = pyarrow.table({"a": pyarrow.array([1 << 30], pyarrow.date32())})
    with pytest.raises(ValueError, match=r"a\.parquet: cannot be read as Parquet .*magnitude"):
        list(read_parquet(parquet(tmp_path / "a.parquet", late), Counter()))
    monkeypatch.setattr(parquet_files, "_MOST_VALUES", 3)
    with pytest.raises(ValueError, match=r"a row group has .* 4 values in one column"):
        list(read_parquet(parquet(tmp_path / "a.parquet", pyarrow.table({"a": [[1] * 4]})), Counter()))


def test_what_else_the_parquet_library_raises_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fuzzing found a RuntimeError for histograms of levels that do not fit."""
    path = parquet(tmp_path / "a.parquet", pyarrow.table({"a": [1]}))

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("Definition level histogram size mismatch, size: 4, expected: 3")

    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", broken)
    for read in (parquet_columns, lambda path: list(read_parquet(path, Counter()))):
        with pytest.raises(ValueError, match=r"a\.parquet: cannot be read as Parquet \(Definition level"):
            read(path)


@pytest.mark.parametrize("name", ["coco_karpathy_train.json", "dataset_coco.json"])
def test_a_list_of_zeros_is_no_list_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(coco_files, "_MOST_BAD", 50)
    rows: list[Any] = [{"image": "a_1.jpg", "caption": "a cat", "cocoid": 1, "sentences": [], "split": "train"}]
    rows += [0] * 60
    (tmp_path / name).write_text(json.dumps({"images": rows} if name.startswith("dataset") else rows))
    with pytest.raises(ValueError, match=rf"{name}: more than 1,000,000 images, or 50 that are none"):
        convert(coco, tmp_path, tmp_path / "out", "train")


def test_a_million_empty_boxes(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"s":[' + "[]," * 2_000_000 + "[]]}")
    with pytest.raises(ValueError, match=r"a\.json: more than 2,000,000 lists and objects"):
        read_proposals(tmp_path / "a.json", "minmax", ["s"], Counter())


def test_boxes_of_texts_and_truth_values_are_none(tmp_path: Path) -> None:
    boxes = [[0, 0, 0, 1, 1, 1], [0, 0, 0, "1", 1, 1], [False, 0, 0, True, 1, 1], [[0, 0, "0"]] * 8, {"box": "123456"}]
    (tmp_path / "a.json").write_text(json.dumps({"s": boxes}))
    assert set(read_proposals(tmp_path / "a.json", "minmax", ["s"], Counter())["s"].wrong) == {1, 2, 3, 4}


@pytest.mark.parametrize("line", [b"5\n", b"#\n", b"\n"])
def test_a_text_of_counts_and_remarks_is_not_read_to_its_end(line: bytes) -> None:
    with pytest.raises(PointsError, match=r"a\.xyz: holds no points in its first 65,536 bytes"):
        parse_cloud(line * 4_000_000, ".xyz", "a.xyz")


def test_one_list_of_arrays_again_and_again(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_bytes(b"\x80\x02](]q\x00" + b"h\x00" * 50_000 + b"e.")
    with pytest.raises(ValueError, match=r"a\.dat: refused, it holds the same list again and again"):
        ArrayPickle(tmp_path / "a.dat")


def test_a_text_that_takes_four_bytes_a_letter(tmp_path: Path) -> None:
    size = 40 * MIB
    text = b"a" * (size - 4) + "\U0001f600".encode()
    (tmp_path / "a.dat").write_bytes(b"X" + struct.pack("<I", size) + text + b".")
    del text

    def read() -> None:
        with pytest.raises(ValueError, match="it claims an array of 41,943,040 bytes"):
            ArrayPickle(tmp_path / "a.dat")

    assert traced(read) < 128 * MIB


# What the messages advise helps.


@remedy("is a pipe, whose end may never come; give a file")
def test_a_file_in_place_of_a_pipe(tmp_path: Path) -> Attempt:
    path = tmp_path / "1.xml"
    os.mkfifo(path)

    def follow(_: Any) -> None:
        path.unlink()
        path.write_text("<annotation/>")

    return lambda: read_xml(path), follow


@remedy("comes twice; give every column its own name")
def test_a_column_name_for_each(tmp_path: Path) -> Attempt:
    columns = [pyarrow.array(["x"]), pyarrow.array(["y"])]
    path = parquet(tmp_path / "a.parquet", pyarrow.Table.from_arrays(columns, names=["a", "a"]))
    better = pyarrow.Table.from_arrays(columns, names=["a", "b"])
    return lambda: list(read_parquet(path, Counter())), lambda _: parquet(path, better)


@remedy("are read; write it in parts")
def test_a_parquet_file_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attempt:
    monkeypatch.setattr(parquet_files, "_MOST_ROWS", 3)
    path = parquet(tmp_path / "a.parquet", pyarrow.table({"a": [1, 2, 3, 4]}))
    return lambda: list(read_parquet(path, Counter())), lambda _: parquet(path, pyarrow.table({"a": [1, 2]}))


@remedy("keep fewer boxes of each scene, and nothing but boxes")
def test_fewer_boxes_of_a_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attempt:
    monkeypatch.setattr(proposals, "_MOST_LISTS", 5)
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"s": [[0, 0, 0, 1, 1, 1]] * 9}))
    fewer = json.dumps({"s": [[0, 0, 0, 1, 1, 1]] * 2})
    return lambda: read_proposals(path, "minmax", ["s"], Counter()), lambda _: path.write_text(fewer)
