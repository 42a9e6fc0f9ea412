"""Pickles, npz and npy files that a few bytes make large, or slow, or fatal: refused in one line."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rb.data.formats import MAX_RECORD_BYTES
from rb.data.prepare.clouds import MAX_BYTES, read_cloud
from rb.data.prepare.common import RejectedError, read_file
from rb.data.prepare.safe_pickle import load_plain_pickle

LAUGH = b"](" + b"K\x01" * 9 + b"e" + b"".join(b"q%c0](" % i + b"h%c" % i * 9 + b"e" for i in range(60))
PICKLES = {
    # Hashing a tuple of tuples is recursive in C, without a limit: the interpreter would die.
    "a key of a million tuples": b"}" + b")" + b"\x85" * 1_000_000 + b"K\x01s.",
    "a set of nested tuples": b"\x8f()" + b"\x85" * 1_000_000 + b"\x90.",
    # 2^60 hashes.
    "a key that doubles": b"}" + b")" + b"2\x86" * 60 + b"K\x01s.",
    "a frozen set that doubles": b"()" + b"2\x86" * 60 + b"\x91.",
    "lists in lists, 9^60": LAUGH + b".",
    "a list in itself": b"]q\x000h\x00h\x00a.",
    "nested lists": b"]" * 100_000 + b"a" * 99_999 + b".",
    "a number of 200,000 bits": b"]\x8b" + struct.pack("<i", 25_000) + b"\x01" * 25_000 + b"a.",
    "a text of 4 GiB": b"X\xff\xff\xff\xff.",
    "bytes of 2^62": b"\x8e" + struct.pack("<Q", 1 << 62) + b".",
    "a place in the memo of 4 GiB": b"Nr\xff\xff\xff\xff.j\xfe\xff\xff\xff.",
    "a frame of 2^62 bytes": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.",
}
HARMLESS = ("a place in the memo of 4 GiB", "a frame of 2^62 bytes")


@pytest.mark.parametrize("case", PICKLES)
def test_a_pickle_that_would_kill_or_hang_is_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "refs.p"
    path.write_bytes(PICKLES[case])
    if case in HARMLESS:
        assert load_plain_pickle(path) is None  # what it claims costs nothing
        return
    with pytest.raises(ValueError, match=r"refs\.p: (refused, it|not a readable pickle)") as refused:
        load_plain_pickle(path)
    assert "\n" not in str(refused.value)


def test_what_data_sets_ship_is_still_read(tmp_path: Path) -> None:
    """One list in two places, tuples as keys, a set: none of it is an attack."""
    tokens = ["a", "cat"]
    value = [{"tokens": tokens, "again": tokens, ("a", 1): {1, 2}, "size": (3, (4, 5))}] * 3
    (tmp_path / "refs.p").write_bytes(pickle.dumps(value, protocol=4))
    assert load_plain_pickle(tmp_path / "refs.p") == value


def npz(path: Path, data: bytes, method: int = zipfile.ZIP_DEFLATED, claims: int | None = None) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("arr_0.npy", data)
    if claims is not None:  # the size in the directory, which a reader may believe
        content = bytearray(path.read_bytes())
        struct.pack_into("<I", content, content.rindex(b"PK\x01\x02") + 24, claims)
        path.write_bytes(content)
    return path


def header(shape: str, kind: str = "<f4") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def good() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.random.default_rng(0).normal(size=(2000, 3)).astype(np.float32))
    return stream.getvalue()


CLOUDS = {
    "zip of 2 GiB of zeros": lambda p: npz(p, header("(178956970, 3)") + bytes(64 << 20) * 4),
    "a size that lies": lambda p: npz(p, header("(20000000, 3)") + bytes(240 << 20), claims=1000),
    "a size of 4 GiB": lambda p: npz(p, good(), claims=2**32 - 2),
    "lzma": lambda p: npz(p, good(), zipfile.ZIP_LZMA),
    "bzip2": lambda p: npz(p, good(), zipfile.ZIP_BZIP2),
    "a shape of 2^62": lambda p: npz(p, header(f"({2**62}, 3)")),
    "a negative shape": lambda p: npz(p, header("(-4, -3)") + bytes(48)),
    "a shape of truth values": lambda p: npz(p, header("(True, 3)") + bytes(12)),
    "objects": lambda p: npz(p, header("(1, 3)", "|O") + pickle.dumps([1, 2, 3])),
    "nested brackets": lambda p: npz(p, header("(" * 5000)),
    "not a zip": lambda p: p.write_bytes(b"PK\x03\x04" + bytes(100)),
    "nothing": lambda p: p.write_bytes(b""),
}


@pytest.mark.parametrize("case", CLOUDS)
def test_a_cloud_that_lies_is_rejected(tmp_path: Path, case: str) -> None:
    path = tmp_path / "cloud.npz"
    CLOUDS[case](path)
    tracemalloc.start()
    with pytest.raises(RejectedError, match=r"^points_unreadable: .*cloud\.npz: ") as refused:
        read_cloud(path, 1)
    assert tracemalloc.get_traced_memory()[1] < MAX_BYTES + (100 << 20)
    tracemalloc.stop()
    assert "\n" not in str(refused.value)


def test_a_raw_file_larger_than_a_record_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    with path.open("wb") as file:
        file.truncate(900 << 20)
    tracemalloc.start()
    with pytest.raises(RejectedError, match=rf"photo\.jpg: more than {MAX_RECORD_BYTES:,} bytes"):
        read_file(path, "image_missing")
    assert tracemalloc.get_traced_memory()[1] < 2.1 * MAX_RECORD_BYTES
    tracemalloc.stop()
