"""Clouds inside zips: found by uid, read in place by many threads, and refused in one line where a zip lies."""

from __future__ import annotations

import struct
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rb.data.prepare import cloud_zips
from rb.data.prepare.cloud_zips import CloudZips

SUFFIXES = (".ply", ".pt")
SIZE = 5000


def content(uid: str) -> bytes:
    return uid.encode() * (SIZE // len(uid))


def made(path: Path, names: list[str], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip as ``zip -r`` makes it; each member's content is its uid again and again."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.mkdir("Cap3D_pcs_pt") if hasattr(archive, "mkdir") else archive.writestr("Cap3D_pcs_pt/", b"")
        for name in names:
            archive.writestr(name, content(name.rpartition("/")[2].rpartition(".")[0]))
    return path


def altered(path: Path, mark: bytes, offset: int, kind: str, value: int) -> Path:
    """``path`` with a number behind the last ``mark`` changed."""
    data = bytearray(path.read_bytes())
    struct.pack_into(kind, data, data.rindex(mark) + offset, value)
    path.write_bytes(data)
    return path


def test_members_are_found_by_uid_and_read_by_threads(tmp_path):
    uids = [f"{k:032x}" for k in range(40)]
    first = made(tmp_path / "compressed_pcs_pt_00.zip", [f"Cap3D_pcs_pt/{uid}.pt" for uid in uids[:30]])
    second = made(
        tmp_path / "compressed_pcs_01.zip",
        [f"{uids[0]}.ply", *(f"a/b/{uid}.ply" for uid in uids[30:39]), "__MACOSX/._x.ply", f"../../{uids[39]}.ply", f"{uids[39]}.txt"],
        zipfile.ZIP_STORED,
    )  # fmt: skip
    clouds = CloudZips([first, second], set(uids), SUFFIXES)
    assert len(clouds) == 40
    assert "._x" not in clouds
    assert clouds.suffix(uids[0]) == ".pt"  # the first zip counts
    assert clouds.where(uids[39]) == f"{second}: ../../{uids[39]}.ply"  # a name for people, never a path
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda uid: clouds.read(uid, 1 << 20), uids * 5)) == [content(uid) for uid in uids * 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == [second.name, first.name]


def test_a_zip_beyond_four_gibibytes_is_read(tmp_path):
    """A hole in place of what would come before: the offsets are 64 bits long."""
    path = tmp_path / "a.zip"
    with path.open("wb") as file:
        file.seek(5 << 30)
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("Cap3D_pcs_pt/a1.pt", content("a1"))
    clouds = CloudZips([path], {"a1"}, SUFFIXES)
    assert clouds.read("a1", SIZE) == content("a1")


LIES = {
    "encrypted": (lambda p: altered(p, b"PK\x01\x02", 8, "<H", 1), "it is encrypted"),
    "another method": (lambda p: altered(p, b"PK\x01\x02", 10, "<H", 12), r"packed by method 12; 0 \(stored\) and 8"),
    "a size of 4 GiB": (lambda p: altered(p, b"PK\x01\x02", 24, "<I", 2**32 - 2), "claims 4,294,967,294 bytes, at most"),
    "a smaller size": (lambda p: altered(p, b"PK\x01\x02", 24, "<I", 10), "Bad CRC-32|bytes in place of 10"),
    "a larger size": (lambda p: altered(p, b"PK\x01\x02", 24, "<I", SIZE + 90), "5,000 bytes in place of 5,090"),
    "another checksum": (lambda p: altered(p, b"PK\x01\x02", 16, "<I", 1), "Bad CRC-32"),
    "a place behind the end": (lambda p: altered(p, b"PK\x01\x02", 42, "<I", 1 << 30), "."),
    "another name in front": (lambda p: altered(p, b"PK\x03\x04", 30, "<B", 0), "differ"),
    "no deflated data": (lambda p: altered(p, b"PK\x03\x04", 46, "<Q", 2**64 - 1), "Error -3|Bad CRC"),
}  # fmt: skip


@pytest.mark.parametrize("case", LIES)
def test_a_member_that_lies_is_one_error(tmp_path, case):
    change, words = LIES[case]
    path = change(made(tmp_path / "a.zip", ["Cap3D_pcs/a1.ply"]))
    clouds = CloudZips([path], {"a1"}, SUFFIXES)
    with pytest.raises(ValueError, match=words) as refused:
        clouds.read("a1", 1 << 20)
    assert "\n" not in str(refused.value)


def test_a_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a1.ply", bytes(64 << 20))
    altered(path, b"PK\x01\x02", 24, "<I", 1000)
    clouds = CloudZips([path], {"a1"}, SUFFIXES)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"Bad CRC-32|in place of"):
        clouds.read("a1", 1 << 20)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("case", ["empty", "cut", "pointer", "members", "directory"])
def test_a_zip_that_cannot_be_read_is_named(tmp_path, monkeypatch, case):
    path = made(tmp_path / "a.zip", [f"x/{k}.ply" for k in range(9)])
    words = "download it again"
    if case == "empty":
        path.write_bytes(b"")
    elif case == "cut":
        path.write_bytes(path.read_bytes()[:-60])
    elif case == "pointer":
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
        words = "git lfs pull"
    elif case == "members":
        monkeypatch.setattr(cloud_zips, "MAX_MEMBERS", 9)
        words = "more than 9 members; split it"
    else:
        monkeypatch.setattr(cloud_zips, "MAX_DIRECTORY", 400)
        words = "its directory claims .* bytes, at most 400"
    with pytest.raises(ValueError, match=words) as refused:
        CloudZips([path], set(), SUFFIXES)
    assert str(refused.value).startswith(str(path))
