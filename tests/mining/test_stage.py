"""Stage files and input shards: what is read from tars of all kinds, and that a stage file reads back as it was written."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from rb.core.strict_json import FormatError
from rb.data.formats import IndexEntry, Manifest, Record
from rb.data.shard_writer import ShardWriter
from rb.mining.inputs import InputImage, InputShard, Unreadable, find_inputs
from rb.mining.record import ImageRecord, Region, parse_records, read_records, write_records
from rb.mining.stage import Stage, made_of, run_stage, stage_file, with_pixels
from rb.mining.work import Made, finished


def png(colour: str = "red", size: tuple[int, int] = (8, 6)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return write_tar(
        tmp_path / "cc3m" / "00000.tar",
        {
            "000000000.jpg": png(),
            "000000000.txt": b"a red square",
            "000000000.json": json.dumps({"caption": "another", "status": "success"}).encode(),
            "000000001.png": png("blue"),
            "000000001.json": json.dumps({"caption": "a blue\ud83d square", "sha256": None}).encode(),
            "000000002.json": b"{}",
            "000000003.png": b"no image",
            "000000004.webp": png("lime"),
        },
    )


def some_records() -> list[ImageRecord]:
    region = Region(
        "a:0", [0, 0, 4, 6], "04L4", 24, 0.9, None, "a ball\u2028", -0.5, ["ball", "ball"], 1.0, "a red ball"
    )
    gone = Region("a:1", [1, 0, 2, 1], "61l2", 1)
    gone.drop("masks", "small")
    return [
        ImageRecord("a", 8, 6, None, "a caption", {"made": 9, "low predicted iou": 7}, [region, gone]),
        ImageRecord("b", 1, 1),
    ]


def test_a_stage_file_reads_back(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(write_records(some_records()))
    assert read_records(tmp_path / "f") == some_records()
    assert [r.id for r in some_records()[0].kept] == ["a:0"]
    assert write_records(some_records()).count(b"\n") == 2


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ('"area":24', '"area":-1', r"f, line 1: regions\[0\]: field 'area' must be a whole number"),
        ('"box":[0,0,4,6]', '"box":[0,0,9,6]', r"regions\[0\]: field 'box' must be x1 y1 x2 y2 within 8 x 6 pixels"),
        ('"reason":"small"', '"reason":3', r"regions\[1\]: dropped: field 'reason' must be"),
        ('"alt":null', '"alt":3', "line 1: field 'alt' must be a text"),
        ('"stability":null,', "", "field 'stability' is missing"),
    ],
)
def test_a_stage_file_is_checked(right: str, wrong: str, message: str) -> None:
    content = write_records(some_records()).decode()
    assert right in content
    with pytest.raises(FormatError, match=message):
        parse_records(content.replace(right, wrong).encode(), "f")


def test_images_of_a_foreign_tar(tar: Path) -> None:
    (shard,) = find_inputs([str(tar)])
    found = list(shard.images())
    assert [(image.key, image.text) for image in found if isinstance(image, InputImage)] == [
        ("cc3m/000000000", "a red square"),
        ("cc3m/000000001", "a blue? square"),
        ("cc3m/000000003", None),
        ("cc3m/000000004", None),
    ]
    assert [image for image in found if isinstance(image, Unreadable)] == [Unreadable("cc3m/000000002", "no image")]


def test_a_cut_shard_gives_what_is_before_the_cut(tar: Path) -> None:
    data = tar.read_bytes()
    tar.write_bytes(data[: data.index(b"000000003.png") + 520])
    found = list(find_inputs([str(tar)])[0].images())
    assert len(found) == 4
    assert found[-1] == Unreadable("00000.tar", "shard is cut")


def test_inputs_are_manifests_tars_folders_and_patterns(tmp_path: Path, tar: Path) -> None:
    write_tar(tar.with_name("00001.tar"), {"1.png": png()})
    with ShardWriter(tmp_path / "ours", "ours", "image", "train") as writer:
        writer.write(Record("coco/1", "coco", "train", 8, 6, ["a square", "more"]), png(), "png")
    shards = find_inputs([str(tmp_path / "cc*" / "*.tar"), str(tmp_path / "ours"), str(tar)])
    assert [(s.number, s.path.name, s.prefix) for s in shards] == [
        (0, "00000.tar", "cc3m"),
        (1, "00001.tar", "cc3m"),
        (2, "ours-000000.tar", None),
    ]
    assert [(i.key, i.text) for i in shards[2].images() if isinstance(i, InputImage)] == [("coco/1", "a square")]
    with pytest.raises(ValueError, match=r"input .*nothing: no shards there; give a manifest"):
        find_inputs([str(tmp_path / "nothing")])


def test_a_set_of_clouds_is_refused(tmp_path: Path) -> None:
    counts = {"records": 0, "objects": 0, "samples": 0}
    manifest = Manifest(1, "a", "point_cloud", "train", counts, {}, [], IndexEntry("index.bin", 0, "-"))
    (tmp_path / "manifest.json").write_bytes(manifest.to_json())
    with pytest.raises(ValueError, match="is a set of point_cloud; regions are mined from images"):
        find_inputs([str(tmp_path)])


class Whole(Stage):
    """One region an image: all of it."""

    name = "whole"

    def run(self, shard: InputShard, before) -> Made:
        records, rejected = [], []
        for image in shard.images():
            try:
                assert isinstance(image, InputImage)
                width, height = image.decode().size
                region = Region(f"{image.key}:0", [0, 0, width, height], "x", width * height)
                records.append(ImageRecord(image.key, width, height, image.text, regions=[region]))
            except (AssertionError, FormatError):
                rejected.append((image.key, "damaged image"))
        return made_of(records, rejected)


class Colour(Stage):
    """Names a region by its first pixel."""

    name = "colour"

    def start(self) -> None:
        assert not hasattr(self, "names"), "started once"
        self.names = {(255, 0, 0): "red", (0, 0, 255): "blue"}

    def run(self, shard: InputShard, before) -> Made:
        for record, image in with_pixels(shard, before):
            for region in record.kept:
                region.name = self.names.get(image.getpixel((0, 0)))
                if region.name is None:
                    region.drop(self.name, "unknown colour")
        return made_of(before)


def test_stages_follow_each_other(tar: Path, tmp_path: Path) -> None:
    (shard,), colour = find_inputs([str(tar)]), Colour({})
    done, new = run_stage(Whole({}), shard, tmp_path / "out", None)
    assert (done.taken, done.rejected, new) == (5, {"damaged image": 2}, True)
    assert run_stage(colour, shard, tmp_path / "out", "whole") == (
        finished(stage_file(tmp_path / "out", "colour", 0)),
        True,
    )
    records = read_records(tmp_path / "out" / "colour" / "00000.jsonl")
    assert [(r.name, r.dropped and r.dropped.reason) for record in records for r in record.regions] == [
        ("red", None),
        ("blue", None),
        (None, "unknown colour"),
    ]
    assert [
        run_stage(stage, shard, tmp_path / "out", before)[1] for stage, before in ((Whole({}), None), (colour, "whole"))
    ] == [
        False,
        False,
    ]
    assert run_stage(Colour({"a": 1}), shard, tmp_path / "out", "whole")[1]
