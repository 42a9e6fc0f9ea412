"""`rb prepare custom`: tables of every kind give the records that a reader of the table expects; what is ambiguous or wrong is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from rb.cli import main
from rb.data.index import ManifestReader
from tests.support.small_data import image_bytes

SIZE = (100, 60)
ROWS = [
    {"image": "a.png", "description": "a red cube", "bbox": [10, 20, 30, 50], "id": "cube"},
    {"image": "a.png", "description": "the cube on the left", "bbox": [10, 20, 30, 50], "id": "cube"},
    {"image": "sub/b.png", "description": "a cow, and a “calf”", "bbox": [50, 20, 99.5, 55.25], "id": "cow"},
]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for i, name in enumerate(("a.png", "sub/b.png")):
        (tmp_path / "images" / name).write_bytes(image_bytes(i, size=SIZE))
    return tmp_path / "images"


def as_csv(rows: list[dict[str, Any]], path: Path, delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def as_jsonl(rows: list[dict[str, Any]], path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def as_json(rows: list[dict[str, Any]], path: Path) -> None:
    path.write_text(json.dumps(rows))


def as_coco(rows: list[dict[str, Any]], path: Path) -> None:
    names = sorted({row["image"] for row in rows})
    annotations = [
        {
            "id": 70 + i,
            "image_id": 5 + names.index(row["image"]),
            "bbox": [row["bbox"][0], row["bbox"][1], row["bbox"][2] - row["bbox"][0], row["bbox"][3] - row["bbox"][1]],
            "caption": row["description"],
            "segmentation": [[0.0] * 6],
        }
        for i, row in enumerate(rows)
    ]
    images = [{"id": 5 + i, "file_name": name, "width": SIZE[0], "height": SIZE[1]} for i, name in enumerate(names)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))


def as_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def from_csv(folder: Path, images: Path) -> list[str]:
    """The command that makes shards ``o`` of ``t.csv``."""
    out = str(folder / "o")
    return ["prepare", "custom", "--csv", str(folder / "t.csv"), "--images", str(images), "--out", out]


def stored(folder: Path) -> list[tuple[str, list[tuple[list[float], list[str]]]]]:
    return [(r.source_id, [(o.box, o.captions) for o in r.objects]) for r, _ in ManifestReader(folder).records()]


@pytest.mark.parametrize(
    ("kind", "write"),
    [("csv", as_csv), ("jsonl", as_jsonl), ("json-list", as_json), ("coco", as_coco), ("parquet", as_parquet)],
)
def test_every_kind_of_table_gives_the_same_records(
    kind: str, write: Callable[..., None], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(ROWS, tmp_path / "table")
    command = ["prepare", "custom", f"--{kind}", str(tmp_path / "table"), "--images", str(images), "--name", "mine"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    found = stored(tmp_path / "out" / "train")
    captions = [row["description"] for row in ROWS]
    # A file in COCO's form has an id for each annotation, so the two captions of one box are two objects there.
    cube = (
        [([10, 20, 30, 50], captions[:2])] if kind != "coco" else [([10, 20, 30, 50], [text]) for text in captions[:2]]
    )
    assert found == [("mine/a.png", cube), ("mine/sub/b.png", [([50, 20, 99.5, 55.25], captions[2:])])]
    text = "".join(capsys.readouterr())
    assert "boxes: xywh, in pixels" in text if kind == "coco" else "boxes: xyxy, in pixels" in text
    assert "mine, split train" in text


@pytest.mark.parametrize(
    ("boxes", "option", "expected"),
    [
        ({"x": 10, "y": 20, "w": 20, "h": 30}, [], "xywh, in pixels"),
        ({"xmin": 0.1, "ymin": 0.4, "xmax": 0.2, "ymax": 0.6}, [], "xyxy, in shares"),
        ({"bbox": [40, 40, 20, 20]}, [], "xywh, in pixels"),  # no second corner beyond the first
        ({"bbox": [60, 10, 90, 50]}, [], "xyxy, in pixels"),  # no width of 90 at 60 of 100
        ({"bbox": "[10.0, 10.0, 40.0, 40.0]"}, ["--boxes", "xywh"], "xywh, in pixels"),
        ({"a": 0.5, "b": 0.5, "c": 0.25, "d": 0.25}, ["--column", "box=a,b,c,d"], "xywh, in shares"),
    ],
)
def test_what_the_numbers_of_a_box_mean_is_found_out(
    boxes: dict[str, Any],
    option: list[str],
    expected: str,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    as_csv([{"file": "a.png", "text": "a thing", **boxes}], tmp_path / "t.csv")
    command = from_csv(tmp_path, images)
    assert main([*command, *option]) == 0
    assert f"boxes: {expected}" in capsys.readouterr().err
    values = [
        float(v)
        for value in boxes.values()
        for v in (value if isinstance(value, list) else str(value).strip("[]").split(","))
    ]
    sides = (*SIZE, *SIZE) if "shares" in expected else (1, 1, 1, 1)
    box = [value * side for value, side in zip(values, sides, strict=True)]
    if "xywh" in expected:
        box = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
    assert stored(tmp_path / "o" / "train")[0][1][0][0] == pytest.approx(box)


def test_what_can_be_read_in_two_ways_is_refused_with_a_remedy_that_works(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_csv([{"file": "a.png", "text": "a thing", "bbox": "10 10 40 40"}], tmp_path / "t.csv")
    command = from_csv(tmp_path, images)
    assert main(command) == 2
    assert "can be xyxy or xywh; say --boxes with one of" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    assert main([*command, "--boxes", "xyxy"]) == 0
    as_csv([{"name": "a.png", "words": "a thing"}], tmp_path / "t.csv")
    command[-1] = str(tmp_path / "p")
    assert main(command) == 2
    assert "which column holds the file? Say --column file=NAME; there are name, words" in capsys.readouterr().err
    assert main([*command, "--column", "file=name", "--column", "caption=words"]) == 0
    assert main([*command, "--column", "file=nam"]) == 2
    assert "--column file=nam: 'nam' is no column of" in capsys.readouterr().err
    as_csv(
        [
            {"file": "a.png", "text": "x y", "bbox": "60 10 20 70"},
            {"file": "a.png", "text": "x z", "bbox": "60 10 90 40"},
        ],
        tmp_path / "t.csv",
    )
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "neither xyxy nor xywh: [60.0, 10.0, 20.0, 70.0] of an image of 100 x 60 cannot be xyxy" in error


@pytest.mark.parametrize(
    ("odd", "good", "code"),
    [
        ({"x": 60, "y": 10, "w": 20, "h": 70}, {"x": 60, "y": 10, "w": 20, "h": 30}, 0),  # fits neither form
        (
            {"x1": 60, "y1": 10, "x2": 20, "y2": 30},
            {"x1": 60, "y1": 10, "x2": 30, "y2": 30},
            2,
        ),  # all fit the other form
    ],
)
def test_one_bad_box_does_not_outweigh_the_names_of_columns(
    odd: dict[str, int],
    good: dict[str, int],
    code: int,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [{"file": "a.png", "text": f"thing {i}", **good} for i in range(11)]
    as_csv([{"file": "a.png", "text": "odd", **odd}, *rows], tmp_path / "t.csv")
    assert main(from_csv(tmp_path, images)) == code
    error = capsys.readouterr().err
    if code:
        assert "can be xyxy or xywh; say --boxes" in error
    else:
        assert "boxes: xywh, in pixels" in error
        assert ManifestReader(tmp_path / "o/train").manifest.rejected == {"box_outside_image": 1}


def test_many_bad_rows_end_with_three_of_them(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"file": "a.png", "text": "a thing"},
        {"file": "lost.png", "text": "gone"},
        {"file": "../a.png", "text": "outside"},
    ]
    rows += [{"file": "sub/b.png", "text": "nan"}, {"file": "", "text": "nameless"}]
    as_jsonl(rows, tmp_path / "t.jsonl")
    with (tmp_path / "t.jsonl").open("a") as file:
        file.write("[" * 100_000 + "\n")
    command = [
        "prepare",
        "custom",
        "--jsonl",
        str(tmp_path / "t.jsonl"),
        "--images",
        str(images),
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "5 of 6 rows of split 'train' cannot be used: row 5: column 'file' names no file" in error
    assert error.count("row ") == 3 + error.count("of 6 rows") - 1
    assert not (tmp_path / "o" / "train").exists()
    assert main([*command, "--most-bad", "0.9"]) == 0
    rejected = [json.loads(line) for line in (tmp_path / "o" / "train" / "rejected.jsonl").read_text().splitlines()]
    assert sorted(row["reason"] for row in rejected) == [
        "image_missing", "malformed_row", "malformed_row", "no_caption", "unsafe_name",
    ]  # fmt: skip


def test_splits_by_column_and_by_hash_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "i").mkdir()
    for i in range(20):
        (tmp_path / "i" / f"{i}.png").write_bytes(image_bytes(i))
    rows = [{"file": f"{i}.png", "text": f"thing {i}", "split": "val" if i % 4 == 0 else "train"} for i in range(20)]
    as_csv([*rows, *rows], tmp_path / "t.csv", delimiter="\t")
    command = ["prepare", "custom", "--csv", str(tmp_path / "t.csv"), "--images", str(tmp_path / "i")]
    assert main([*command, "--out", str(tmp_path / "c")]) == 0
    reader = ManifestReader(tmp_path / "c" / "val")
    assert [record.source_id for record, _ in reader.records()] == [f"c/{i}.png" for i in range(0, 20, 4)]
    halves = []
    for name in ("h", "again"):
        assert main([*command, "--out", str(tmp_path / name), "--name", "n", "--val", "0.3", "--test", "0.2"]) == 0
        sets = {
            split: {r.source_id for r, _ in ManifestReader(tmp_path / name / split).records()}
            for split in ("train", "val", "test")
        }
        assert sum(map(len, sets.values())) == 20, "every file is in one split, with both its rows"
        halves.append(sets)
    assert halves[0] == halves[1]
    assert main([*command, "--out", str(tmp_path / "no"), "--val", "0.7", "--test", "0.3"]) == 2
    assert "less than 1 together" in capsys.readouterr().err


def test_clouds_with_boxes_in_their_own_units(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    points = np.random.default_rng(0).uniform(-2, 2, (200, 3)).astype(np.float32)
    np.save(tmp_path / "c" / "room.npy", points)
    rows = [
        {
            "cloud": "room.npy",
            "caption": "all of it",
            "xmin": -2,
            "ymin": -2,
            "zmin": -2,
            "xmax": 2,
            "ymax": 2,
            "zmax": 2,
        },
        {"cloud": "room.npy", "caption": "nothing", "xmin": 5, "ymin": 5, "zmin": 5, "xmax": 6, "ymax": 6, "zmax": 6},
    ]
    as_csv(rows, tmp_path / "t.csv")
    command = [
        "prepare",
        "custom",
        "--csv",
        str(tmp_path / "t.csv"),
        "--clouds",
        str(tmp_path / "c"),
        "--most-bad",
        "0.5",
    ]
    assert main([*command, "--out", str(tmp_path / "o")]) == 0
    reader = ManifestReader(tmp_path / "o" / "train")
    assert reader.manifest.modality == "point_cloud_region"
    assert reader.manifest.rejected == {"box_outside_cloud": 1}
    assert stored(tmp_path / "o" / "train") == [("o/room.npy", [([-2, -2, -2, 2, 2, 2], ["all of it"])])]


def test_boxes_that_lean_over_the_image_are_cut_and_counted_once(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIZE is 100 x 60: half a pixel over is cut, two are rejected; two rows of one box are one region, near boxes are two."""
    boxes = [[-0.5, 10, 40, 60.25], [-0.5, 10, 40, 60.25], [10.0001, 10, 40, 40], [10.0002, 10, 40, 40], [-2, 0, 9, 9]]
    as_jsonl(
        [{"file": "a.png", "text": f"thing {k}", "bbox": box} for k, box in enumerate(boxes)], tmp_path / "t.jsonl"
    )
    command = ["prepare", "custom", "--jsonl", f"{tmp_path}/t.jsonl", "--images", str(images), "--boxes", "xyxy"]
    assert main([*command, "--most-bad", "0.5", "--json", "--out", f"{tmp_path}/o"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["notes"]["boxes cut to the image (1 px at most)"] == 1
    assert answer["rejected"] == {"box_outside_image": 1}
    ((_, regions),) = stored(tmp_path / "o" / "train")
    assert regions == [
        ([0, 10, 40, 60], ["thing 0", "thing 1"]),
        ([10.0001, 10, 40, 40], ["thing 2"]),
        ([10.0002, 10, 40, 40], ["thing 3"]),
    ]


def test_a_folder_of_folders_gives_the_class_of_each_file(tmp_path: Path) -> None:
    for i, name in enumerate(("night_stand/a.png", "bed/one/b.png", "bed/.hidden", ".cache/c.png")):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(image_bytes(i, size=SIZE))
    words = [
        "prepare",
        "custom",
        "--class-folders",
        "--images",
        str(tmp_path / "images"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(words) == 0
    records = {record.source_id: record.captions for record, _ in ManifestReader(tmp_path / "out" / "train").records()}
    assert records == {"out/bed/one/b.png": ["bed"], "out/night_stand/a.png": ["night stand"]}
