"""What `rb data stats`, `rb data diff` and `rb data verify --decode --against` say of small sets, checked by hand."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rb.cli import main
from rb.core.modality import IMAGE, IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION
from rb.data.compare_sets import shared
from rb.data.formats import ObjectAnnotation, Record
from rb.data.shard_writer import ShardWriter
from rb.data.stats import collect
from rb.sources.points import encode_points
from tests.support.small_data import cloud, image_bytes, write_set


def picture(kind: str, size: tuple[int, int], brightness: int = 0, **options: int) -> bytes:
    """Soft random blots; any size and quality of it is the same picture."""
    blots = np.random.default_rng(0).integers(0, 230, (12, 20), dtype=np.uint8)
    image = Image.fromarray(blots).resize(size, Image.Resampling.BICUBIC).point(lambda value: value + brightness)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, kind, **options)
    return buffer.getvalue()


def write(folder: Path, split: str, records: list[tuple[Record, bytes, str]], modality: str = IMAGE_REGION) -> Path:
    with ShardWriter(folder, "mine", modality, split) as writer:
        for record, media, extension in records:
            writer.write(record, media, extension)
        writer.reject("x", "no_caption", "none")
    return folder


def region(source: str, split: str, objects: list[tuple[list[float], list[str]]], size: tuple[int, int]) -> Record:
    items = [ObjectAnnotation(f"o{i}", box, captions) for i, (box, captions) in enumerate(objects)]
    return Record(source, "mine", split, *size, [], items)


def json_of(capsys: pytest.CaptureFixture[str], *command: str) -> tuple[int, dict]:
    code = main(["data", *command, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_statistics_of_regions_are_those_of_a_count_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = (100, 50)  # 5,000 pixels
    first = [([0, 0, 2, 2], ["red"]), ([0, 0, 50, 50], ["a Red cube", "the  cube left"])]  # 0.0008 and 0.5 of the area
    second = [([10, 10, 60, 20], ["one two three four five six"])]  # 0.1
    train = write(
        tmp_path / "train",
        "train",
        [
            (region("a", "train", first, size), image_bytes(0, size=size), "png"),
            (region("b", "train", second, size), image_bytes(1, size=size), "png"),
        ],
    )
    # The same image in another set, with one object more.
    val = write(
        tmp_path / "val",
        "val",
        [(region("b", "val", [*second, ([0, 0, 20, 20], ["cube"])], size), image_bytes(1, size=size), "png")],
    )
    code, found = json_of(capsys, "stats", str(train), str(val))
    assert code == 0
    one = found["sets"][0]
    assert (one["name"], one["split"], one["sources"], one["objects"], one["texts"]) == ("mine", "train", 2, 3, 4)
    assert one["words"] == {"mean": (1 + 3 + 3 + 6) / 4, "median": 3, "max": 6}
    assert one["vocabulary"] == len({"red", "a", "cube", "the", "left", "one", "two", "three", "four", "five", "six"})
    assert one["regions per source"] == {"mean": 1.5, "median": 1.5, "max": 2}
    assert one["region sizes"]["regions"] == {
        "below 0.001": 1,
        "0.001 to 0.01": 0,
        "0.01 to 0.05": 0,
        "0.05 to 0.2": 1,
        "0.2 to 0.5": 0,
        "0.5 and more": 1,
    }
    assert one["rejected"] == {"no_caption": 1}
    total = found["together"][0]
    assert (total["sources"], total["objects"], total["texts"]) == (2, 4, 6), "image b and its first object count once"
    assert total["words"]["mean"] == (1 + 3 + 3 + 6 + 6 + 1) / 6
    assert main(["data", "stats", str(train), str(val)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["mine", "train", "image_region", "2", "3", "4", "3.25", "3", "11", "1.50"]
    assert lines[3].startswith("2 sets together")
    assert lines[4] == "regions by share of the image's area:"
    assert [line.split()[-6:] for line in lines[6:8]] == [
        ["33.3%", "0.0%", "0.0%", "33.3%", "0.0%", "33.3%"],
        ["0.0%", "0.0%", "0.0%", "100.0%", "0.0%", "0.0%"],
    ]


def test_statistics_of_clouds_count_points_in_boxes(tmp_path: Path) -> None:
    points = cloud(0, 200)
    points[:, :3] = 5.0
    points[:15, :3] = 0.5  # 15 points in the small box
    boxes = [([0, 0, 0, 1, 1, 1], ["chair"]), ([0, 0, 0, 9, 9, 9], ["room"])]
    write(
        tmp_path / "s",
        "val",
        [(region("s", "val", boxes, (0, 0)), encode_points(points), "points.npy")],
        POINT_CLOUD_REGION,
    )
    write_set(tmp_path / "c", POINT_CLOUD, 4)
    regions, clouds = collect([tmp_path / "s", tmp_path / "c"])["sets"]
    assert regions["region sizes"]["unit"] == "points in the box"
    assert regions["region sizes"]["regions"] == {
        "below 10": 0,
        "10 to 100": 1,
        "100 to 1000": 1,
        "1000 to 10000": 0,
        "10000 and more": 0,
    }
    assert (clouds["sources"], clouds["objects"], clouds["texts"]) == (4, 0, 1 + 2 + 3 + 1)
    assert "region sizes" not in clouds


def test_a_picture_in_two_splits_is_found_under_any_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    box = [([1, 1, 30, 30], ["light"])]
    train = write(
        tmp_path / "train", "train", [(region("a", "train", box, (200, 120)), picture("PNG", (200, 120)), "png")]
    )
    smaller = picture("JPEG", (150, 90), brightness=8, quality=60)
    other = write(
        tmp_path / "val",
        "val",
        [
            (region("a", "val", box, (64, 64)), image_bytes(3, size=(64, 64)), "png"),
            (region("copy", "val", box, (150, 90)), smaller, "jpg"),
            (region("new", "val", box, (64, 64)), image_bytes(4, size=(64, 64)), "png"),
        ],
    )
    code, found = json_of(capsys, "verify", str(other), "--against", str(train))
    assert code == 1
    assert found["shared"][0]["ids"] == ["a"]
    assert found["shared"][0]["media"] == [["a", "copy"]]
    assert main(["data", "verify", str(other), "--against", str(train)]) == 1
    text = capsys.readouterr().out
    assert "1 sources, 1 more that look the same" in text
    assert "looks the same: copy as a" in text
    assert main(["data", "verify", str(train), "--decode"]) == 0
    clouds = write_set(tmp_path / "c", POINT_CLOUD, 2)
    assert clouds.modality == POINT_CLOUD
    assert main(["data", "verify", str(train), "--against", str(tmp_path / "c")]) == 2
    assert "give two sets of one modality" in capsys.readouterr().err


def test_flat_pictures_that_differ_do_not_look_the_same(tmp_path: Path) -> None:
    """A thing on an even ground turns few bits of a look, at another place few others."""
    for folder, left in (("one", 20), ("two", 120)):
        image = Image.new("RGB", (200, 120), (200, 220, 240))
        image.paste((220, 30, 30), (left, 40, left + 50, 90))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        split = "train" if folder == "one" else "val"
        write(
            tmp_path / folder,
            split,
            [(Record(folder, "mine", split, 200, 120, ["red"]), buffer.getvalue(), "png")],
            IMAGE,
        )
    assert shared(tmp_path / "one", tmp_path / "two").empty


def test_decoding_finds_pictures_that_end_early(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = picture("JPEG", (200, 120), quality=90)
    cut = Record("cut", "mine", "val", 200, 120, ["light"])
    sound = Record("sound", "mine", "val", 200, 120, ["light"])
    write(tmp_path / "v", "val", [(cut, whole[: len(whole) // 2], "jpg"), (sound, whole, "jpg")], IMAGE)
    assert main(["data", "verify", str(tmp_path / "v")]) == 0, "the bytes are as written"
    capsys.readouterr()
    code, found = json_of(capsys, "verify", str(tmp_path / "v"), "--decode")
    assert code == 1
    assert len(found["not decoded"]) == 1
    assert "record 'cut'" in found["not decoded"][0]


def test_a_difference_names_what_was_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def records(names: str, caption: str = "red", seed: int = 0) -> list[tuple[Record, bytes, str]]:
        box = [0.0, 0.0, 9.0, 9.0]
        return [
            (
                region(name, "val", [(box, [caption if name == "c" else "red"]), (box, ["two"])], (20, 14)),
                image_bytes(seed if name == "d" else ord(name)),
                "png",
            )
            for name in names
        ]

    first, second = (
        write(tmp_path / "1", "val", records("abcd")),
        write(tmp_path / "2", "val", records("dcbe", "blue", 7)),
    )
    code, found = json_of(capsys, "diff", str(first), str(second))
    assert (code, list(found.values())) == (1, [["a"], ["e"], ["d"], ["c"], {"objects with other captions": 1}, 1])
    again = write(tmp_path / "3", "val", list(reversed(records("abcd"))))
    assert main(["data", "diff", str(first), str(again)]) == 0, "the order of records is no difference"
    assert capsys.readouterr().out == "4 sources are equal\n"


def test_a_difference_says_what_changed_in_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def one(
        name: str, split: str, *objects: tuple[str, list[float], list[str]], captions: tuple[str, ...] = ()
    ) -> Path:
        items = [ObjectAnnotation(object_id, box, texts) for object_id, box, texts in objects]
        with ShardWriter(tmp_path / name, name, IMAGE_REGION, split) as writer:
            writer.write(Record("a", name, split, 20, 14, list(captions), items), image_bytes(0), "png")
        return tmp_path / name

    first = one("old", "val", ("1", [0, 0, 9, 9], ["red"]), ("2", [1, 1, 5, 5], ["x"]), ("3", [2, 2, 4, 4], ["y"]))
    same = one(
        "other", "train", ("3", [2.0, 2.0, 4.0, 4.0], ["y"]), ("2", [1, 1, 5, 5], ["x"]), ("1", [0, 0, 9, 9], ["red"])
    )
    assert main(["data", "diff", str(first), str(same)]) == 0, (
        "a set may have another name, order, and way to write numbers"
    )
    assert capsys.readouterr().out == "1 sources are equal\n"
    changed = one(
        "new",
        "val",
        ("1", [0, 0, 9, 8.5], ["Red"]),
        ("2", [1, 1, 5, 5], ["x"]),
        ("4", [3, 3, 4, 4], ["z"]),
        captions=("all",),
    )
    assert main(["data", "diff", str(first), str(changed)]) == 1
    said = "objects missing 1, objects added 1, other boxes 1, objects with other captions 1, sources with other captions 1"
    assert capsys.readouterr().out.splitlines()[-1] == f"  in {changed}: {said}"
