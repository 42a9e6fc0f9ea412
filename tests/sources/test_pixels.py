"""Strict decoding: damaged images are refused wherever they are read, sound ones give Pillow's pixels, no conversion loses range."""

from __future__ import annotations

import contextlib
import io
import json
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile, ImageOps

from rb.api.inputs import InputError, rgb_image
from rb.core.modality import IMAGE
from rb.data.formats import FormatError, Record, read_rejected
from rb.data.prepare import coco
from rb.data.shard_writer import ShardWriter
from rb.data.shards import adopt
from rb.sources.pixels import (
    ImageError,
    OrientationError,
    decode_image,
    decode_upright,
    image_orientation,
    image_size,
    orientation_of,
    size_of_file,
    to_rgb,
    turned,
)
from tests.support.raw_data import convert

END = b"\xff\xd9"


def photo(seed: int = 0, width: int = 123, height: int = 77) -> Image.Image:
    """Smooth colours with some noise."""
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.integers(0, 255, (8, 12, 3), dtype=np.uint8)).resize((width, height))
    noisy = np.asarray(smooth).astype(int) + rng.integers(-12, 12, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def saved(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def closed_after_a_cut(data: bytes) -> bytes:
    return data[: len(data) // 2] + END


def zeroed(data: bytes) -> bytes:
    return data[: len(data) // 2] + b"\0" * (len(data) // 2 - 2) + END


def garbled(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(b * 7 + 13 & 0xFE for b in data[middle : middle + 40]) + data[middle + 40 :]


DAMAGES = [closed_after_a_cut, zeroed, garbled]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 95}])
def test_damage_that_pillow_turns_grey_is_an_error(damage, options: dict) -> None:
    data = damage(saved(photo(), **options))
    if "progressive" not in options:
        Image.open(io.BytesIO(data)).convert("RGB")  # Pillow says nothing
    with pytest.raises(ImageError, match=r"here: the image is damaged \(.*\); get the file again"):
        decode_image(data, "here")


@pytest.mark.parametrize("damage", DAMAGES)
def test_cmyk_is_checked_too(damage) -> None:
    data = saved(photo().convert("CMYK"))
    pillow = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(np.asarray(decode_image(data, "here")), pillow)
    with pytest.raises(ImageError, match="here: the image is damaged"):
        decode_image(damage(data), "here")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"subsampling": 0},
        {"subsampling": 1, "quality": 95},
        {"quality": 30},
        {"keep_rgb": True},
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_sound_jpegs_give_pillow_s_pixels(mode: str, options: dict) -> None:
    for seed, size in enumerate([(123, 77), (8, 8), (1, 33), (16, 17)]):
        data = saved(photo(seed, *size).convert(mode), **options) + b"a tail behind the end"
        pillow = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(np.asarray(decode_image(data, "here", size)), pillow)


def test_damaged_files_are_refused_when_prepared_indexed_and_captioned(tmp_path: Path) -> None:
    good, bad = saved(photo()), closed_after_a_cut(saved(photo()))
    raw = tmp_path / "raw"
    (raw / "train2014").mkdir(parents=True)
    images = [
        {
            "filepath": "train2014",
            "filename": f"{k}.jpg",
            "cocoid": k,
            "split": "train",
            "sentences": [{"raw": "a cube"}],
        }
        for k in (1, 2)
    ]
    (raw / "dataset_coco.json").write_text(json.dumps({"images": images}))
    for k, data in ((1, good), (2, bad)):
        (raw / f"train2014/{k}.jpg").write_bytes(data)
    assert convert(coco, raw, tmp_path / "out", "train").rejected == {"unreadable_image": 1}
    (row,) = read_rejected(tmp_path / "out/rejected.jsonl")
    assert "2.jpg: the image is damaged" in row.detail
    # A tar that others made: the writer looks at headers only.
    with ShardWriter(tmp_path / "foreign", "x", IMAGE, "train") as writer:
        writer.write(Record("x/1", "x", "train", 123, 77, ["a cube"]), bad, "jpg")
    with pytest.raises(FormatError, match=r"x-000000\.tar: key '000000000' at byte 0: the image is damaged"):
        adopt(tmp_path / "foreign", IMAGE, overwrite=True)
    with pytest.raises(ImageError, match=r"2\.jpg: the image is damaged"):
        rgb_image(raw / "train2014/2.jpg", "images[0]")


def test_sixteen_bits_are_scaled_not_cut_off() -> None:
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    pixels = np.asarray(decode_image(saved(Image.fromarray(grey), "PNG"), "here"))
    expected = np.round(grey / 257).astype(np.uint8)
    assert np.array_equal(pixels, np.repeat(expected[:, :, None], 3, axis=2))
    assert len(np.unique(pixels)) == 256  # Pillow's own conversion makes nearly all of it 255


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_shows_white_and_what_is_not_keeps_its_pixels(mode: str) -> None:
    layers = photo().convert("RGBA")
    assert np.array_equal(np.asarray(to_rgb(layers, "x")), np.asarray(photo()))
    layers.putalpha(Image.fromarray(np.repeat(np.array([[0, 128, 255]], np.uint8), 77, 0).repeat(41, 1)))
    data = saved(layers.convert("LA") if mode == "LA" else layers.quantize() if mode == "P" else layers, "PNG")
    pixels = np.asarray(decode_image(data, "here")).astype(float)
    seen = np.asarray(layers.convert("LA").convert("RGB") if mode == "LA" else layers.convert("RGB")).astype(float)
    assert (pixels[:, :41] == 255).all()
    slack = 30 if mode == "P" else 1  # a palette of 256 colours
    assert np.abs(pixels[:, 41:82] - (255 * 127 + seen[:, 41:82] * 128) / 255).mean() < slack
    assert np.abs(pixels[:, 82:] - seen[:, 82:]).mean() < slack


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_modes_without_a_certain_form_in_rgb_are_refused(mode: str) -> None:
    image = Image.new(mode, (4, 4)) if mode == "LAB" else photo().convert(mode)
    with pytest.raises(InputError, match=rf"images\[0\]: pixels of mode {mode} have no certain form"):
        rgb_image(image, "images[0]")


def test_an_unknown_format_is_named_without_an_address() -> None:
    for data, says in (
        (saved(photo(), "GIF"), r"starts with b'GIF8"),
        (b"", "the file is empty"),
        (b"<html>", "b'<html>'"),
    ):
        with pytest.raises(ImageError, match=says) as caught:
            decode_image(data, "here")
        assert "0x" not in str(caught.value)


def sideways(orientation: int | str, kind: str = "PNG", **options: object) -> bytes:
    """A photo whose EXIF states ``orientation``."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return saved(photo(width=24, height=10), kind, exif=exif, **options)


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"lossless": True})])
@pytest.mark.parametrize("orientation", range(10))
def test_photos_are_turned_as_viewers_turn_them(orientation: int, kind: str, options: dict) -> None:
    data = sideways(orientation, kind, **options)
    upright, stated = decode_upright(data, "here")
    assert stated == (orientation if 2 <= orientation <= 8 else 1) == image_orientation(data, "here")
    viewed = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(np.asarray(upright), np.asarray(viewed))
    assert orientation_of(upright) == 1  # so nothing turns it a second time
    assert decode_image(data, "here").size == (24, 10)  # shards count pixels as stored


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_files_size_costs_its_header_only(tmp_path: Path, kind: str, orientation: int) -> None:
    """Also where a PNG states an orientation behind its pixels, as ``exiftool`` adds it."""
    data = sideways(orientation, kind)
    if kind == "PNG":
        plain = saved(photo(width=24, height=10), "PNG")
        start = data.index(b"eXIf") - 4
        chunk = data[start : start + 12 + int.from_bytes(data[start : start + 4], "big")]
        data = plain[:-12] + chunk + plain[-12:]
    path = tmp_path / "a.bin"
    path.write_bytes(data)
    with path.open("r+b") as file:
        file.truncate(64 << 20)
    tracemalloc.start()
    assert size_of_file(path, "upright") == ((10, 24) if orientation == 6 else (24, 10))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert size_of_file(path, "stored") == (24, 10)
    with (
        contextlib.nullcontext() if orientation == 1 else pytest.raises(OrientationError, match=r"a\.bin: EXIF orient")
    ):
        size_of_file(path, None)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0" + b"\xff" * 30,
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x05\0\x01\0\0\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x01\0\0\0ab\0\0",
    ],
)
def test_exif_that_cannot_be_read_states_no_orientation(exif: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = saved(photo(), exif=exif)
        warnings.simplefilter("error")
        assert decode_upright(data, "here")[1] == 1


def test_orientation_counts_in_xmp_and_in_images_that_a_caller_opened() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><tiff:Orientation>8</tiff:Orientation></x:xmpmeta>'
    assert image_orientation(saved(photo(), xmp=xmp), "here") == 8
    image = Image.open(io.BytesIO(sideways(6)))  # as a caller of the API opens it
    upright, orientation = rgb_image(image, "images[0]")
    assert (orientation, upright.size) == (6, (10, 24))
    assert np.array_equal(np.asarray(upright), np.asarray(turned(to_rgb(image, "here"), 6)))
    assert rgb_image(upright, "images[0]")[1] == 1
    assert rgb_image(np.asarray(image), "images[0]")[1] == 1  # an array is what it is


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "L"), ("PNG", "RGBA"), ("JPEG", "RGB"), ("WEBP", "RGB")])
def test_a_small_file_that_claims_a_large_picture_is_refused_before_it_is_unpacked(
    kind: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flat picture of 24 million pixels takes a few dozen kB."""
    buffer = io.BytesIO()
    Image.new(mode, (6000, 4000)).save(buffer, kind)
    data = buffer.getvalue()
    assert len(data) * 50 < 6000 * 4000
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("its pixels are unpacked"))
    for read in (decode_image, image_size):
        with pytest.raises(
            ImageError, match=r"claims 6000 x 4000 pixels in [\d,]+ bytes, more than 50 a byte; shrink the image"
        ):
            read(data, "flat")
    assert image_size(data + b"x" * 480_000, "as large as a photo") == (6000, 4000)
