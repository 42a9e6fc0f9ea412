"""What the messages of rb/sources advise helps: images and clouds of people, and those of records."""

from __future__ import annotations

import builtins
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from plyfile import PlyData, PlyElement
from pypcd4 import Encoding, PointCloud

from rb.sources.cloud_files import read_cloud
from rb.sources.pixels import decode_image, size_in_set, to_rgb
from rb.sources.points import EXTENSION, PointSource, PointTransform, cloud_frame, decode_points, encode_points
from rb.sources.source import Stored
from tests.data.test_exif_orientation import photo
from tests.support.remedies import Said, covers, helps, remedy

XYZ = np.random.default_rng(0).normal(2.0, 3.0, (50, 3)).astype(np.float32)


def saved(save: Callable[..., object], *arguments: object) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *arguments)
    return buffer.getvalue()


def as_text(array: np.ndarray) -> bytes:
    return saved(np.savetxt, array)


def as_npy(array: np.ndarray) -> bytes:
    return saved(np.save, array)


def ply(*names: str) -> bytes:
    """Elements in this order: vertices, and faces, which are lists."""
    vertices = np.rec.fromarrays(XYZ.T, names="x,y,z")
    faces = np.array([([0, 1, 2],)], dtype=[("vertex_indices", "i4", (3,))])
    elements = {"vertex": PlyElement.describe(np.array(vertices), "vertex"), "face": PlyElement.describe(faces, "face")}
    return saved(PlyData([elements[name] for name in names]).write)


def pcd(encoding: Encoding, points: np.ndarray = XYZ) -> bytes:
    return saved(PointCloud.from_xyz_points(points).save, encoding)


HOLES = XYZ.copy()
HOLES[3, 1] = np.nan
# Message -> (name, the file as it was, the file as the message wants it).
CLOUDS = {
    "the file is empty; save it again": ("a.npy", lambda: b"", lambda: as_npy(XYZ)),
    "more than {}; thin the cloud": ("a.xyz", lambda: as_text(XYZ), lambda: as_text(XYZ[:9])),
    "cannot be read ({}); save it again": ("a.npy", lambda: b"\x93NUMPY\x01\0", lambda: as_npy(XYZ)),
    "points are not finite (NaN or infinite), first {}; remove them": (
        "a.npy",
        lambda: as_npy(HOLES),
        lambda: as_npy(HOLES[np.isfinite(HOLES).all(1)]),
    ),
    "has shape {}; give [N, 3] x y z, or [N, 6]": ("a.xyz", lambda: as_text(XYZ[:, :2]), lambda: as_text(XYZ)),
    "save the file with its vertices first": ("a.ply", lambda: ply("face", "vertex"), lambda: ply("vertex", "face")),
    "its data {} bytes packed from {}; save it again uncompressed": (
        "a.pcd",
        lambda: pcd(Encoding.BINARY_COMPRESSED, np.ones((50, 3), np.float32)).replace(b"POINTS 50", b"POINTS 51"),
        lambda: pcd(Encoding.BINARY),
    ),
}


@pytest.mark.parametrize("says", covers(CLOUDS))
def test_a_cloud_is_saved_as_it_is_said(tmp_path: Path, says: str) -> None:
    name, before, after = CLOUDS[says]
    path = tmp_path / name
    path.write_bytes(before())
    most = len(before()) - 1 if "thin" in says else 1 << 20
    helps(says, lambda: read_cloud(path, most), lambda _: path.write_bytes(after()))


@remedy("needs the package {}: pip install {}")
def test_a_reader_that_is_not_installed(tmp_path: Path, monkeypatch):
    """As without the package, and as with it: nothing is installed here."""
    (tmp_path / "a.ply").write_bytes(ply("vertex"))
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name == "plyfile":
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)

    def follow(said: Said) -> None:
        assert said.found(r"pip install (\w+)") == "plyfile"
        monkeypatch.setattr(builtins, "__import__", real)

    return lambda: read_cloud(tmp_path / "a.ply"), follow


def png(image: Image.Image, **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **settings)
    return buffer.getvalue()


SMALL = Image.new("RGB", (32, 24), "red")
IMAGES = {
    "the image is damaged ({}); get the file again, or save": (lambda: png(SMALL)[:-30], lambda: png(SMALL)),
    "16-bit grey with a transparent value; save it with 8 bits": (
        lambda: png(Image.new("I;16", (8, 8), 9), transparency=9),
        lambda: png(Image.new("L", (8, 8), 9)),
    ),
    "pixels, more than {} allowed; shrink the image": (
        lambda: png(Image.new("1", (10_000, 9_000))),
        lambda: png(SMALL),
    ),
    "more than {} a byte; shrink the image": (lambda: png(Image.new("1", (4_000, 3_100))), lambda: png(SMALL)),
}


@pytest.mark.parametrize("says", covers(IMAGES))
def test_an_image_is_saved_as_it_is_said(says: str) -> None:
    before, after = IMAGES[says]
    data = [before()]
    helps(says, lambda: decode_image(data[0], "a.png"), lambda _: data.append(data.pop() and after()))


@remedy("have no certain form in 8-bit RGB; save the image with 8 bits a channel")
def test_an_image_of_whole_numbers():
    image = [Image.new("I", (8, 8), 70_000)]
    return lambda: to_rgb(image[0], "a"), lambda _: image.append(image.pop().point(lambda v: v / 257).convert("L"))


@pytest.mark.parametrize("number", [0, 1])
def test_a_sideways_photo_is_read_as_told(number: int) -> None:
    said_so: list[str] = []

    def follow(said: Said) -> None:
        option, value = said.commands[number].split()
        assert option == "--exif"
        said_so.append(value)

    helps(SIDEWAYS, lambda: size_in_set(photo(6), "a.jpg", *said_so or [None]), follow)


SIDEWAYS = "Say which pixels sizes and boxes refer to"
covers([SIDEWAYS])


def stored(array: np.ndarray) -> Stored:
    return Stored(encode_points(array), (0, 0), "a", None)


COLOURED = np.concatenate([XYZ, np.full((50, 3), 200, np.float32)], axis=1)
FIRST = XYZ[0].tolist()
# Message -> (a call, what it gets, what the message makes of it; none where the cloud is left out: then nothing is called).
RECORDS = {
    "a coordinate is not finite; reject the cloud": (lambda a: decode_points(encode_points(a), "a"), HOLES, None),
    "all points are in one place (or too far apart for float32); reject the cloud": (
        lambda a: cloud_frame(a, "a"),
        np.ones((9, 3)),
        None,
    ),
    "a record has them in [0, 1]: divide them by 255": (
        lambda a: PointSource().check(stored(a)),
        COLOURED,
        COLOURED / np.array([1, 1, 1, 255, 255, 255], np.float32),
    ),
    "in the same coordinate frame? Reject the object if so": (
        lambda boxes: PointSource().check_regions(stored(XYZ), boxes),
        [[99.0, 99.0, 99.0, 100.0, 100.0, 100.0], [*FIRST, *(v + 1 for v in FIRST)]],
        [[*FIRST, *(v + 1 for v in FIRST)]],
    ),
    "reject such clouds when preparing, or lower model.num_points": (
        lambda num_points: PointTransform(num_points)(XYZ, (), "a", (0,)),
        51,
        50,
    ),
    "but the cloud has none; use a point encoder with 3 channels": (
        lambda channels: PointTransform(9, channels)(XYZ, (), "a", (0,)),
        6,
        3,
    ),
}


@pytest.mark.parametrize("says", covers(RECORDS))
def test_a_record_is_corrected_as_it_is_said(says: str) -> None:
    call, *given, corrected = RECORDS[says]
    assert EXTENSION == "points.npy"

    def follow(_: Said) -> None:
        given.clear()
        given.extend([] if corrected is None else [corrected])

    helps(says, lambda: [call(one) for one in given], follow)
