"""Point clouds as people have them: every kind gives the same points, colours in [0, 1]; headers that lie are refused before they cost memory."""

from __future__ import annotations

import builtins
import contextlib
import io
import pickle
import re
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement
from pypcd4 import Encoding, PointCloud

from rb.sources.cloud_files import read_cloud
from rb.sources.points import PointsError

RNG = np.random.default_rng(0)
XYZ = RNG.normal(2.0, 3.0, (50, 3)).astype(np.float32)
RGB = RNG.integers(0, 256, (50, 3), dtype=np.uint8)


def table(colours: bool) -> np.ndarray:
    """The points as plyfile wants them."""
    kinds = [("x", "f4"), ("y", "f4"), ("z", "f4"), ("nx", "f4")]
    kinds += [("red", "u1"), ("green", "u1"), ("blue", "u1")] if colours else []
    rows = np.zeros(len(XYZ), kinds)
    for i, name in enumerate("xyz"):
        rows[name] = XYZ[:, i]
    for i, name in enumerate(("red", "green", "blue") if colours else ()):
        rows[name] = RGB[:, i]
    return rows


def ply(path: Path, colours: bool, text: bool = False, order: str = "<") -> None:
    """As a mesh tool writes it: faces behind the vertices."""
    faces = np.array([([0, 1, 2],)], dtype=[("vertex_indices", "i4", (3,))])
    elements = [PlyElement.describe(table(colours), "vertex"), PlyElement.describe(faces, "face")]
    PlyData(elements, text=text, byte_order="=" if text else order).write(str(path))


def pcd(path: Path, colours: bool, encoding: Encoding) -> None:
    columns = [XYZ, PointCloud.encode_rgb(RGB)[:, None].view(np.float32)] if colours else [XYZ]
    make = PointCloud.from_xyzrgb_points if colours else PointCloud.from_xyz_points
    make(np.concatenate(columns, axis=1)).save(path, encoding)


def text_pcd(path: Path, colours: bool) -> None:
    """As PCL writes it: a colour is a float whose bits are the three bytes."""
    rows = [" ".join(repr(float(v)) for v in row) for row in XYZ]
    if colours:
        packed = PointCloud.encode_rgb(RGB).ravel()
        rows = [f"{row} {float(colour)!r}" for row, colour in zip(rows, packed, strict=True)]
    header = (PCD % (b"1", b"50", b"50", b"ascii")).decode()
    if colours:
        header = header.replace("x y z", "x y z rgb").replace("4 4 4", "4 4 4 4").replace("F F F", "F F F F")
        header = header.replace("COUNT 1 1 1\n", "")  # one each
    path.write_text(header + "\n".join(rows) + "\n")


def npy(path: Path, colours: bool, order: str = "C", kind: type = np.float64) -> None:
    np.save(path, np.asarray(np.concatenate([XYZ, RGB] if colours else [XYZ], axis=1), kind, order=order))


def npz(path: Path, colours: bool) -> None:
    np.savez_compressed(path, np.concatenate([XYZ, RGB], axis=1) if colours else XYZ)


def pt(path: Path, colours: bool, kind: torch.dtype = torch.float64, turned: bool = False) -> None:
    """``turned``: [6, N], as Cap3D's files have them."""
    rows = torch.from_numpy(np.concatenate([XYZ, RGB / 255.0] if colours else [XYZ], axis=1)).to(kind)
    torch.save(rows.T.contiguous() if turned else rows, path)


def xyz(path: Path, colours: bool, between: str = " ", count: bool = False) -> None:
    rows = np.concatenate([XYZ, RGB], axis=1) if colours else XYZ
    lines = [between.join(repr(float(v)) for v in row) for row in rows]
    path.write_text("\n".join(["# made by a scanner", *([str(len(rows))] if count else []), *lines, ""]))


KINDS: dict[str, tuple[str, Callable[[Path, bool], None]]] = {
    "binary ply": ("ply", ply),
    "big-endian ply": ("PLY", lambda path, colours: ply(path, colours, order=">")),
    "text ply": ("ply", lambda path, colours: ply(path, colours, text=True)),
    "text pcd": ("pcd", text_pcd),
    "binary pcd": ("pcd", lambda path, colours: pcd(path, colours, Encoding.BINARY)),
    "compressed pcd": ("pcd", lambda path, colours: pcd(path, colours, Encoding.BINARY_COMPRESSED)),
    "npy": ("npy", npy),
    "npy by columns": ("npy", lambda path, colours: npy(path, colours, "F", np.float32)),
    "npz": ("npz", npz),
    "pt": ("pt", pt),
    "pt by channels": ("pt", lambda path, colours: pt(path, colours, torch.float32, turned=True)),
    "xyz": ("xyz", xyz),
    "xyz with commas and a count": ("xyz", lambda path, colours: xyz(path, colours, ", ", count=True)),
}


@pytest.mark.parametrize("colours", [False, True])
@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_gives_the_same_points(kind: str, colours: bool, tmp_path: Path) -> None:
    extension, write = KINDS[kind]
    write(tmp_path / f"scan.{extension}", colours)
    found = read_cloud(tmp_path / f"scan.{extension}")
    assert found.points.dtype == np.float32
    np.testing.assert_allclose(found.points[:, :3], XYZ, rtol=1e-6)
    if colours:
        np.testing.assert_allclose(found.points[:, 3:], RGB / 255.0, atol=1e-6)
        assert found.notes == (("colours from 0 to 255, divided by 255",) if kind.startswith(("np", "xyz")) else ())


def test_points_without_a_measurement_are_left_out_and_counted(tmp_path: Path) -> None:
    """An organised PCD, as a depth camera writes it."""
    rows = XYZ.copy()
    rows[[3, 9]] = np.nan
    PointCloud.from_xyz_points(rows).save(tmp_path / "a.pcd", Encoding.BINARY)
    found = read_cloud(tmp_path / "a.pcd")
    assert np.array_equal(found.points, np.delete(XYZ, [3, 9], axis=0))
    assert found.notes == ("2 of 50 points without a measurement (NaN) left out",)


PLY = b"ply\nformat %s 1.0\nelement vertex %s\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
PCD = b"VERSION .7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 %s\nWIDTH %s\nHEIGHT 1\nPOINTS %s\nDATA %s\n"
LITTLE = b"binary_little_endian"
HUGE = b"4000000000000"


def npy_header(shape: str, kind: str = "<f4") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


LISTS = PLY.replace(b"element vertex %s", b"element face %s\nproperty list uchar int v\nelement vertex 1") % (
    LITTLE,
    b"%b",
)


LIES = [
    ("ply", PLY % (LITTLE, HUGE) + XYZ.tobytes(), "says 4000000000000 rows of vertex, which need at least"),
    ("ply", PLY % (LITTLE, b"51") + XYZ.tobytes(), "says 51 rows of vertex, which need at least 612 bytes, but 600 follow"),
    ("ply", PLY % (b"ascii", HUGE) + b"1 2 3\n", "need at least"),
    ("ply", PLY % (b"ascii", b"2") + b"1 2 3\n4 x 6\n", "cannot be read .*could not convert string 'x' to float32"),
    ("ply", PLY % (LITTLE, b"-1"), "it must be: element NAME COUNT"),
    ("ply", PLY.replace(b"float x", b"V9 x") % (LITTLE, b"1") + b"\0" * 20, "has an unknown type: 'property V9 x'"),
    ("ply", b"ply\nformat ascii 1.0\nelement vertex " + HUGE + b"\nend_header\n", "rows without a property"),
    ("ply", PLY.replace(b"vertex", b"point") % (LITTLE, b"1") + b"\0" * 12, "has no element named vertex"),
    ("ply", PLY.replace(b"float z", b"float w") % (LITTLE, b"1") + b"\0" * 12, "points have no z; they have x, y, w"),
    ("ply", b"solid cube" * 9, "not a PLY file"),
    ("ply", b"<!DOCTYPE html>" * 9, "it is a web page"),
    ("ply", LISTS % b"900000" + b"\0" * 900_012, "element face has lists before the vertices end; save the file with its vertices first"),
    ("pcd", PCD % (b"1", HUGE, HUGE, b"binary") + XYZ.tobytes(), "need at least"),
    ("pcd", PCD % (b"1", b"51", b"51", b"binary") + XYZ.tobytes(), "says 51 points, .*612 bytes, but 600 follow"),
    ("pcd", PCD % (b"1", HUGE, HUGE, b"ascii") + b"1 2 3\n", "need at least"),
    ("pcd", PCD % (b"900000000", b"0", b"0", b"binary"), "cut short or damaged|unknown"),
    ("pcd", PCD % (b"1", b"9000000", b"9000000", b"binary_compressed") + b"\x08\0\0\0\x00\xf3\x6f\x06" + b"\0" * 8, "its data 8 bytes packed from 108000000; save it again"),
    ("pcd", PCD % (b"1", b"2", b"3", b"ascii") + b"1 2 3\n4 5 6\n", "says 3 points"),
    ("pcd", (PCD % (b"1", b"1", b"1", b"binary")).replace(b"SIZE 4 4 4", b"SIZE 4 4") + b"\0" * 12, "different lengths"),
    ("npy", npy_header("(4000000000000, 3)") + XYZ.tobytes(), "which need 48000000000000 bytes, but 600 follow"),
    ("npy", npy_header("(4, 3)", "|O") + b"cos\nsystem\n", "must be numbers, got object"),
    ("npy", npy_header("[" * 5000 + "]" * 5000), "cannot be read"),
    ("npy", npy_header("(50, 4)") + np.zeros((50, 4), "f4").tobytes(), r"has shape \[50, 4\]; give"),
    ("xyz", b"1000000000000\n1 2 3\n", "first line says 1000000000000 points, but 1 follow"),
    ("xyz", b"2\nwater\nO 0.0 0.0 0.1\nH 0.0 0.7 0.5\n", "could not convert string 'water' to float64 .*; every line must be x y z, or"),
    ("xyz", b"1 2 3\n4\n", "the number of columns changed from 3 to 1 at row 2; every line must be x y z"),
    ("xyz", b"1 2 3 0 0 -1\n4 5 6 1 0 0\n", "colours reach from -1 to 1; .*keep x y z alone"),
    ("xyz", b"1 2 3\n4 nan 6\n", "1 of 2 points are not finite .*, first 1; remove them"),
    ("xyz", b"# nothing\n", "holds no points"),
    ("npy", b"", "the file is empty; save it again"),
    ("las", b"LASF", "must end in .ply, .pcd, .npy, .npz, .pt, .xyz"),
]  # fmt: skip


def saved(content: object, **options: bool) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def packed(content: bytes) -> bytes:
    """torch's file with its members compressed, as torch never writes it."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    return out.getvalue()


def with_pickle(change: Callable[[bytes], bytes], content: object = torch.zeros(6, 100)) -> bytes:
    """torch's file with another pickle in it."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(content))) as old, zipfile.ZipFile(out, "w") as new:
        for member in old.infolist():
            data = old.read(member)
            new.writestr(member.filename, change(data) if member.filename.endswith("data.pkl") else data)
    return out.getvalue()


class Runs:
    """What a pickle can ask for."""

    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call[0], self.call[1:]


def npz_of(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", data)
    return out.getvalue()


ARRAYS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "npz of zeros": ("npz", lambda: npz_of(npy_header("(8000000, 3)") + bytes(96_000_000)), "claims 96,000,0.. bytes, a cloud has at most 67,108,864"),
    "npz without an array": ("npz", lambda: npz_of(b""), "cannot be read"),
    "npz of 4 columns": ("npz", lambda: npz_of(npy_header("(2, 4)") + bytes(32)), r"has shape \[2, 4\]"),
    "code": ("pt", lambda: saved({"points": Runs(print, "run")}), "refers to (__builtin__|builtins) print"),
    "a long bytearray": ("pt", lambda: with_pickle(lambda _: pickle.dumps(Runs(bytearray, 1 << 32), 2)), "bytearray"),
    "a dict": ("pt", lambda: saved({"points": torch.zeros(6, 10)}), "must hold one plain tensor, got a dict"),
    "a parameter": ("pt", lambda: saved(torch.nn.Parameter(torch.zeros(6, 10))), "refers to torch._utils _rebuild_parameter"),
    "a sparse tensor": ("pt", lambda: saved(torch.zeros(6, 10).to_sparse()), "must hold one plain tensor, and refers to"),
    "one number, repeated": ("pt", lambda: saved(torch.zeros(1).expand(6, 1 << 40)), "claims more numbers than the file holds"),
    "a length that lies": ("pt", lambda: with_pickle(lambda data: data.replace(b"K\x06Kd\x86", b"K\x06J\xff\xff\xff\x7f\x86")), "not one tensor"),
    "four columns": ("pt", lambda: saved(torch.zeros(100, 4)), r"has shape \[100, 4\]"),
    "a number": ("pt", lambda: saved(torch.tensor(1.0)), r"has shape \[\]"),
    "compressed": ("pt", lambda: packed(saved(torch.zeros(6, 9000))), "are compressed"),
    "the old format": ("pt", lambda: saved(torch.zeros(6, 10), _use_new_zipfile_serialization=False), "not a zip file as torch.save writes it"),
    "cut": ("pt", lambda: saved(torch.zeros(6, 1000))[:-500], "not one tensor"),
    "a zip of others": ("pt", lambda: npz_of(b"x"), "are compressed"),
    "truth values": ("pt", lambda: saved(torch.zeros(6, 10) > 0), "refers to torch BoolStorage"),
    "not finite": ("pt", lambda: saved(torch.full((6, 10), float("nan"))), "10 of 10 points are not finite"),
    "colours of -1 to 1": ("pt", lambda: saved(torch.linspace(-1, 1, 60).reshape(6, 10).flip(0)), "colours reach from -1"),
    "a pointer": ("pt", lambda: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
}  # fmt: skip


@pytest.mark.parametrize("case", ARRAYS)
def test_an_array_that_lies_or_runs_is_one_line_and_costs_no_memory(case: str, tmp_path: Path) -> None:
    extension, make, words = ARRAYS[case]
    test_what_cannot_be_read_is_one_line_and_costs_no_memory(extension, make(), words, tmp_path)


@pytest.mark.parametrize(("extension", "data", "words"), LIES)
def test_what_cannot_be_read_is_one_line_and_costs_no_memory(
    extension: str, data: bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / f"scan.{extension}"
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(PointsError, match=words) as error:
        read_cloud(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    assert peak < 16 << 20


def test_files_larger_than_the_limit_are_not_read(tmp_path: Path) -> None:
    npy(tmp_path / "a.npy", colours=False)
    with pytest.raises(PointsError, match="has 1,328 bytes, more than 100; thin the cloud"):
        read_cloud(tmp_path / "a.npy", most_bytes=100)


@pytest.mark.parametrize(("extension", "package"), [("ply", "plyfile"), ("pcd", "pypcd4")])
def test_a_missing_library_is_named_with_what_installs_it(
    extension: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    KINDS[f"binary {extension}"][1](tmp_path / f"a.{extension}", False)
    found = builtins.__import__

    def blocked(name: str, *rest: object) -> object:
        if name == package:
            raise ImportError(f"No module named {name!r}", name=name)
        return found(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(ValueError, match=re.escape(f"needs the package {package}: pip install {package}")):
        read_cloud(tmp_path / f"a.{extension}")


def test_damage_anywhere_is_an_error_of_ours(tmp_path: Path) -> None:
    """Bytes of sound files, altered and cut at keyed places."""
    rng = np.random.default_rng(1)
    for extension, write in KINDS.values():
        path = tmp_path / f"a.{extension}"
        write(path, True)
        sound = path.read_bytes()
        for _ in range(40):
            altered = bytearray(sound)
            for place in rng.integers(0, min(len(sound), 400), rng.integers(1, 4)):
                altered[place] = rng.integers(0, 256)
            path.write_bytes(altered[: rng.integers(1, len(sound) + 1)] if rng.random() < 0.5 else altered)
            with contextlib.suppress(PointsError):
                assert read_cloud(path).points.shape[1] in (3, 6)
