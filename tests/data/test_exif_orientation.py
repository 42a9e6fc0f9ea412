"""Images with an EXIF orientation in sets: refused unless told which pixels sizes and boxes refer to, and then read so everywhere."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from rb.core.modality import IMAGE, IMAGE_REGION
from rb.data.formats import FormatError, ObjectAnnotation, Record, parse_manifest, read_manifest
from rb.data.index import ManifestReader
from rb.data.prepare import coco, refcoco
from rb.data.shard_writer import ShardWriter
from rb.data.shards import adopt
from rb.sources.images import ImageSource, ImageTransform, crop_to_box
from rb.sources.source import Draws
from tests.data.prepare.test_coco import coco_raw, entry
from tests.data.prepare.test_refcoco import ref, refcoco_raw
from tests.support.raw_data import cli_run, convert, found, jpeg, reasons

WIDTH, HEIGHT = 32, 20  # as stored


def photo(orientation: int, kind: str = "JPEG") -> bytes:
    """Colours that differ in every corner."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    corners = Image.fromarray(np.array([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [250, 250, 0]]], np.uint8))
    stream = io.BytesIO()
    corners.resize((WIDTH, HEIGHT), Image.Resampling.NEAREST).save(stream, kind, exif=exif)
    return stream.getvalue()


def viewed(data: bytes) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


def read(folder: Path, crop: tuple[list[float], float] | None = None) -> np.ndarray:
    """The first sample's input."""
    stored = ManifestReader(folder).sample(0).stored
    return ImageSource().read(ImageTransform(16), stored, (), Draws(("x",)), crop)[0].numpy()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_sideways_photo_is_rejected_until_told(tmp_path: Path, kind: str) -> None:
    data = photo(6, kind)
    raw = coco_raw(tmp_path / "raw", [entry(1), entry(2)], {1: data, 2: jpeg()})
    convert(coco, raw, tmp_path / "unsaid", "train")
    assert reasons(tmp_path / "unsaid") == {"exif_orientation": 1}
    for exif, size, image in (
        ("stored", (WIDTH, HEIGHT), Image.open(io.BytesIO(data)).convert("RGB")),
        ("upright", (HEIGHT, WIDTH), viewed(data)),
    ):
        out = tmp_path / exif
        assert cli_run("prepare", "coco", "--raw", str(raw), "--out", str(out), "--exif", exif) == 0
        record = found(out)["coco/1"]
        assert record.media == data, "the bytes stay as they were"
        assert record.record.size == size
        assert read_manifest(out).exif == exif
        np.testing.assert_array_equal(read(out), ImageTransform(16)(image).numpy())


def test_boxes_of_the_other_pixels_are_noticed_by_the_size(tmp_path: Path) -> None:
    """``instances.json`` states the upright size, as annotation tools show it."""
    data, box = photo(8), [2.0, 3.0, 10.0, 20.0]
    raw = refcoco_raw(tmp_path / "raw", [ref(1, 11, 1)], {11: (1, box)}, {1: (HEIGHT, WIDTH)}, files={1: data})
    with pytest.raises(
        ValueError, match=r"exif_orientation: 1.*\n.*orientation 8: .*`--exif upright`.*`--exif stored`"
    ):
        convert(refcoco, raw, tmp_path / "out", "train")
    with pytest.raises(ValueError, match="image_size_mismatch: 1"):
        convert(refcoco, raw, tmp_path / "out", "train", exif="stored")
    assert convert(refcoco, raw, tmp_path / "out", "train", exif="upright").used == 1
    (item,) = found(tmp_path / "out")["coco/1"].record.objects
    expected = ImageTransform(16)(crop_to_box(viewed(data), item.box)).numpy()
    np.testing.assert_array_equal(read(tmp_path / "out", (item.box, 0.0)), expected)


@pytest.mark.parametrize("exif", ["stored", "upright"])
def test_foreign_tars_are_indexed_as_told(tmp_path: Path, exif: str) -> None:
    size = (WIDTH, HEIGHT) if exif == "stored" else (HEIGHT, WIDTH)
    made = Record("s/0", "x", "train", *size, [], [ObjectAnnotation("0", [1.0, 1.0, 9.0, 18.0], ["red"])])
    with ShardWriter(tmp_path / "set", "x", IMAGE_REGION, "train", exif=exif) as writer:
        writer.write(made, photo(5), "jpg")
    manifest = (tmp_path / "set/manifest.json").read_bytes()
    (tmp_path / "set/manifest.json").unlink()
    with pytest.raises(FormatError, match=r"key '000000000'.*EXIF orientation 5.*`--exif upright`.*or `--exif stored`"):
        adopt(tmp_path / "set", IMAGE_REGION, "x")
    other = {"stored": "upright", "upright": "stored"}[exif]
    with pytest.raises(FormatError, match="the record says"):
        adopt(tmp_path / "set", IMAGE_REGION, "x", exif=other)
    command = ["data", "index", str(tmp_path / "set"), "--modality", IMAGE_REGION, "--name", "x", "--exif", exif]
    assert cli_run(*command) == 0
    assert (tmp_path / "set/manifest.json").read_bytes() == manifest


def test_a_set_without_such_images_has_the_manifest_that_it_always_had(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "set", "x", IMAGE, "train") as writer:
        writer.write(Record("s/0", "x", "train", 32, 24, ["red"]), jpeg(), "jpg")
        with pytest.raises(FormatError, match="EXIF orientation 3"):
            writer.write(Record("s/1", "x", "train", WIDTH, HEIGHT, ["red"]), photo(3), "jpg")
    tree = json.loads((tmp_path / "set/manifest.json").read_bytes())
    assert "exif" not in tree
    assert parse_manifest(json.dumps(tree | {"exif": "stored"}).encode(), "m").exif == "stored"
    for wrong in ("sideways", None, 6):
        with pytest.raises(FormatError, match="exif"):
            parse_manifest(json.dumps(tree | {"exif": wrong}).encode(), "m")
    with pytest.raises(ValueError, match="exif 'left' is not one of upright, stored"):
        ShardWriter(tmp_path / "other", "x", IMAGE, "train", exif="left")
