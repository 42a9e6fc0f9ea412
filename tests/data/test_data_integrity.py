"""Damaged and hostile shards: every altered byte is noticed, nothing is silently lost, nothing is ever written or executed."""

from __future__ import annotations

import io
import os
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rb.core.modality import IMAGE, IMAGE_REGION, POINT_CLOUD
from rb.data.formats import FormatError
from rb.data.index import ManifestReader, ShardCorruptionError
from rb.data.shards import adopt, verify_shards
from rb.data.tars import scan_shard
from rb.sources.pixels import MAX_PIXELS, ImageError, decode_image, image_size
from rb.sources.points import PointsError, decode_points, encode_points
from tests.support.corruptions import KINDS, forget, in_store, on_disk, undetected
from tests.support.small_data import cloud, image_bytes, media, record, write_set
from tests.support.stores import S3, reading_from

NUM_RECORDS = 6


def _damaged_records(folder: Path) -> list[int]:
    """Numbers of the records that cannot be read; every error must name file, byte, record and remedy."""
    reader = ManifestReader(folder)
    damaged = set()
    for i in range(len(reader)):
        number = int(reader.index.samples[i]["record"])
        row = reader.index.records[number]
        try:
            reader.sample(i)
        except ShardCorruptionError as error:
            message = str(error)
        else:
            continue
        damaged.add(number)
        named = (
            f"small-{int(row['shard']):06d}.tar",
            f"byte {int(row['offset'])}",
            reader.index.source_id(number),
            "rb prepare",
        )
        assert all(part in message for part in named), message
    reader.close()
    return sorted(damaged)


@pytest.mark.parametrize("modality", [IMAGE_REGION, POINT_CLOUD])
def test_every_altered_byte_is_noticed(tmp_path: Path, modality: str) -> None:
    """150 random flips in headers, payloads and padding: the record that holds the byte is refused, all others are read."""
    write_set(tmp_path / "set", modality, NUM_RECORDS)
    index = ManifestReader(tmp_path / "set").index
    rng = random.Random(1)
    for trial in range(150):
        number = rng.randrange(NUM_RECORDS)
        row = index.records[number]
        inside = rng.randrange(512) if trial % 3 == 0 else rng.randrange(int(row["length"]))
        shard = tmp_path / f"set/small-{int(row['shard']):06d}.tar"
        shard.chmod(0o644)
        place = int(row["offset"]) + inside
        original = shard.read_bytes()
        altered = bytearray(original)
        altered[place] ^= 1 << rng.randrange(8)
        shard.write_bytes(altered)
        assert _damaged_records(tmp_path / "set") == [number], (trial, place)
        shard.write_bytes(original)
    assert _damaged_records(tmp_path / "set") == []


def test_truncation_is_noticed_at_open_and_later(tmp_path: Path) -> None:
    write_set(tmp_path / "set", IMAGE_REGION, 3)
    shard = tmp_path / "set/small-000000.tar"
    original = shard.read_bytes()
    rng = random.Random(2)
    for _ in range(60):
        shard.write_bytes(original)
        reader = ManifestReader(tmp_path / "set")
        kept = rng.randrange(int(reader.index.records[2]["offset"]) + int(reader.index.records[2]["length"]))
        reader.sample(0)
        os.truncate(shard, kept)
        with pytest.raises(ShardCorruptionError, match=r"bytes are left; bring the shard back"):
            for i in range(len(reader)):
                reader.sample(i)
        with pytest.raises(ShardCorruptionError, match=r"small-000000\.tar: .*cut or replaced"):
            ManifestReader(tmp_path / "set")


def test_verify_covers_what_no_record_does(tmp_path: Path) -> None:
    """The zeros behind the last record belong to no record; `rb data verify` compares whole files."""
    write_set(tmp_path / "set", IMAGE_REGION, 3)
    shard = tmp_path / "set/small-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\1")
    assert _damaged_records(tmp_path / "set") == []
    with pytest.raises(ShardCorruptionError, match=r"small-000000.tar \(altered\)"):
        verify_shards(tmp_path / "set")
    shard.unlink()
    with pytest.raises(ShardCorruptionError, match=r"small-000000.tar \(missing\)"):
        verify_shards(tmp_path / "set")


def test_manifest_without_its_files(tmp_path: Path) -> None:
    write_set(tmp_path / "set", IMAGE_REGION, 4)
    (tmp_path / "set/small-000001.tar").rename(tmp_path / "away.tar")
    with pytest.raises(ValueError, match=r"small-000001\.tar: the shard that .*manifest\.json names is missing"):
        ManifestReader(tmp_path / "set")
    (tmp_path / "away.tar").rename(tmp_path / "set/small-000001.tar")
    index = (tmp_path / "set/index.bin").read_bytes()
    (tmp_path / "set/index.bin").write_bytes(index[:70] + bytes([index[70] ^ 4]) + index[71:])
    with pytest.raises(ValueError, match=r"index\.bin: altered since .*rb data index"):
        ManifestReader(tmp_path / "set")
    (tmp_path / "set/index.bin").unlink()
    with pytest.raises(ValueError, match=r"index\.bin: the index .* is missing"):
        ManifestReader(tmp_path / "set")
    with pytest.raises(ValueError, match="no manifest there"):
        ManifestReader(tmp_path / "nowhere")


def test_adopting_never_loses_records_silently(tmp_path: Path) -> None:
    """80 flips in tar headers: an error, or every record is there. (Python's tarfile and WebDataset stop at such a header, silently.)"""
    write_set(tmp_path / "set", IMAGE, 6, max_shard_records=6)
    shard = tmp_path / "set/small-000000.tar"
    original = shard.read_bytes()
    with tarfile.open(shard) as tar:
        headers = [m.offset for m in tar.getmembers()]
    expected = [found.record for found in scan_shard(shard)]
    rng = random.Random(3)
    refused = 0
    for _ in range(80):
        altered = bytearray(original)
        altered[rng.choice(headers) + rng.randrange(512)] ^= 1 << rng.randrange(8)
        shard.write_bytes(altered)
        message = ""
        try:
            found = [item.record for item in scan_shard(shard)]
        except FormatError as error:
            message = str(error)
        if message:
            refused += 1
            assert "small-000000.tar" in message
        else:
            assert found == expected
    assert refused >= 75
    for kept in (0, 100, 512, 3000, len(original) - 9000):
        shard.write_bytes(original[:kept])
        with pytest.raises(FormatError, match=r"small-000000\.tar"):
            adopt(tmp_path / "set", IMAGE, overwrite=True)


def _tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for info, data in members:
            info.size = len(data) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


PHOTO, TEXT = media(IMAGE, 0)[0], record(IMAGE, 0).to_json()


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([(_member("../../escape.png"), PHOTO), (_member("../../escape.json"), TEXT)], "leads outside"),
        ([(_member("a/../../escape.png"), PHOTO), (_member("a/../../escape.json"), TEXT)], "leads outside"),
        ([(_member("/tmp/rb_escape.png"), PHOTO), (_member("/tmp/rb_escape.json"), TEXT)], "leads outside"),
        ([(_member("k.png", tarfile.SYMTYPE, "/etc/passwd"), b""), (_member("k.json"), TEXT)], "not a plain file"),
        ([(_member("k.png", tarfile.LNKTYPE, "k.json"), b""), (_member("k.json"), TEXT)], "not a plain file"),
        ([(_member("k.png", tarfile.CHRTYPE), b""), (_member("k.json"), TEXT)], "not a plain file"),
        ([(_member("k.png", tarfile.FIFOTYPE), b""), (_member("k.json"), TEXT)], "not a plain file"),
        ([(_member("k", tarfile.DIRTYPE), b""), (_member("k.json"), TEXT)], "a record is KEY.json and one of"),
        (
            [(_member("k.png", tarfile.GNUTYPE_SPARSE), PHOTO), (_member("k.json"), TEXT)],
            "not a plain file|not a tar|not a plain",
        ),
        (
            [(_member("k.pickle"), b"cos\nsystem\n(S'touch x'\ntR."), (_member("k.json"), TEXT)],
            "a record is KEY.json and one of",
        ),
        (
            [(_member("k.png"), PHOTO), (_member("k.jpg"), PHOTO), (_member("k.json"), TEXT)],
            "a record is KEY.json and one of",
        ),
        ([(_member("k.png"), PHOTO), (_member("k.png"), PHOTO), (_member("k.json"), TEXT)], "two members"),
        ([(_member("k.png"), PHOTO)], "a record is KEY.json and one of"),
        ([(_member("noextension"), PHOTO)], "not KEY.EXTENSION"),
        (
            [(_member("k.png"), PHOTO), (_member("l.json"), TEXT), (_member("k.json"), TEXT)],
            "a record is KEY.json and one of",
        ),
        (
            [
                (_member("k.png"), PHOTO),
                (_member("k.json"), TEXT),
                (_member("l.png"), PHOTO),
                (_member("l.json"), TEXT),
            ],
            "comes twice",
        ),
    ],
)
def test_hostile_tars_are_refused_and_write_nothing(tmp_path: Path, members, says: str) -> None:
    folder = tmp_path / "deep/set"
    folder.mkdir(parents=True)
    _tar(folder / "x.tar", *members)
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    with pytest.raises(FormatError, match=says):
        adopt(folder, IMAGE)
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before
    assert not Path("/tmp/rb_escape.png").exists()
    assert not Path("x").exists()


def test_compressed_tars_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w:gz") as tar:
        info = _member("k.png")
        info.size = len(PHOTO)
        tar.addfile(info, io.BytesIO(PHOTO))
    with pytest.raises(FormatError, match="compressed tars must be unpacked"):
        adopt(tmp_path, IMAGE)


def test_foreign_keys_are_adopted_and_read(tmp_path: Path) -> None:
    """Long names (pax headers in front of a member), folders in keys, other owners: all that is allowed."""
    key = "part/" + "long" * 40
    _tar(tmp_path / "x.tar", (_member(f"{key}.json"), TEXT), (_member(f"{key}.PNG"), PHOTO))
    adopt(tmp_path, IMAGE)
    loaded = ManifestReader(tmp_path).sample(0)
    assert loaded.record == record(IMAGE, 0)
    assert loaded.media == PHOTO
    shard = tmp_path / "x.tar"
    shard.write_bytes(shard.read_bytes().replace(b"longlong", b"longloNg", 1))
    with pytest.raises(ShardCorruptionError):
        ManifestReader(tmp_path).sample(0)


def test_image_bombs_cost_nothing() -> None:
    side = int(MAX_PIXELS**0.5) + 2
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG")
    assert len(buffer.getvalue()) < 100_000
    for read in (image_size, decode_image):
        with pytest.raises(ImageError, match=r"here: claims .* pixels, more than"):
            read(buffer.getvalue(), "here")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_images_are_errors_not_grey(kind: str) -> None:
    data = image_bytes(0, kind, size=(64, 64))
    assert decode_image(data, "here", (64, 64)).size == (64, 64)
    with pytest.raises(ImageError, match="here"):
        decode_image(data[: len(data) // 2], "here")
    with pytest.raises(ImageError, match="the record says 64 x 63"):
        decode_image(data, "here", (64, 63))


def test_other_image_formats_are_refused() -> None:
    for kind in ("GIF", "BMP", "TIFF"):
        with pytest.raises(ImageError, match="not a readable JPEG, PNG or WebP"):
            decode_image(image_bytes(0, kind), "here")


def _npy(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"\0" * 24


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 3), }\n"),
        _npy("{'descr': '|O', 'fortran_order': False, 'shape': (2, 3), }\n"),
        _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1, 3), }\n"),
        _npy("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }\n"),
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, 3), }\n"),
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (6,), }\n"),
        _npy("__import__('os').mkdir('x')\n"),
        _npy("(" * 5000),
        encode_points(cloud(0))[:-1],
        encode_points(cloud(0)) + b"\0",
        encode_points(np.array([[1.0, 2.0, np.nan]])),
        encode_points(np.array([[1.0, 2.0, -np.inf]])),
        encode_points(np.zeros((4, 5))),
    ],
)
def test_lying_point_files_are_errors(data: bytes) -> None:
    with pytest.raises(PointsError, match="here"):
        decode_points(data, "here")
    assert not Path("x").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_noticed_on_a_disk_and_in_a_store(tmp_path: Path, s3: S3, kind: str) -> None:
    """The short form of `make drill PART=corruptions`."""
    place, draw = on_disk(tmp_path / "disk"), random.Random(kind)
    assert [problem for _ in range(10) for problem in undetected(place, kind, draw)] == []
    place = in_store(tmp_path / f"store-{KINDS.index(kind)}", s3)
    with reading_from(s3.port, tmp_path / "cache"):
        forgotten = lambda: forget(tmp_path / "cache")  # noqa: E731
        assert [problem for _ in range(3) for problem in undetected(place, kind, draw, forgotten)] == []
