"""Pickles of data sets: plain data is read as Python 2 and 3 write it, everything else is refused before anything runs."""

from __future__ import annotations

import collections
import os
import pickle
import resource
import struct
from pathlib import Path

import numpy as np
import pytest

from rb.data.prepare.array_pickle import ArrayPickle
from rb.data.prepare.safe_pickle import UnsafePickleError, load_plain_pickle

PLAIN = [
    {"ref_id": 1, "sent_ids": [0, 1], "sentences": [{"sent": "lady in the café", "tokens": ("a", "b")}], "score": 1.5},
    {
        "none": None,
        "true": True,
        "big": 1 << 80,
        "bytes": b"\x00\xff",
        "set": {1, 2},
        "frozen": frozenset({3}),
        "neg": -7,
    },
]


class _Runs:
    """Touches a file when it is unpickled by a reader that runs code."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def _file(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "refs(google).p"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("protocol", range(2, 6))
def test_plain_data_of_every_protocol(tmp_path, protocol):
    value = PLAIN if protocol >= 4 else [PLAIN[0], {"none": None, "true": True, "big": 1 << 80}]
    shared = [value, value]  # the memo
    assert load_plain_pickle(_file(tmp_path, pickle.dumps(shared, protocol=protocol))) == shared


@pytest.mark.parametrize("protocol", [0, 1])
def test_old_protocols(tmp_path, protocol):
    value = [{"sent": "a\nred é cube", "n": [1, -2, 3.5, True, None], "t": (1, 2)}]
    assert load_plain_pickle(_file(tmp_path, pickle.dumps(value, protocol=protocol))) == value


def test_byte_strings_of_python_2(tmp_path):
    # As Python 2 writes [{'sent': 'lady', u'raw': 'caf\xe9 \xc3\xa9'}], protocol 0 and protocol 2.
    old = b"(lp0\n(dp1\nS'sent'\np2\nS'lady'\np3\nsVraw\np4\nS'caf\\xe9 \\xc3\\xa9'\np5\nsa."
    new = b"\x80\x02]q\x00}q\x01(U\x04sentq\x02U\x04ladyq\x03X\x03\x00\x00\x00rawq\x04U\x07caf\xe9 \xc3\xa9q\x05ua."
    for data in (old, new):
        # Latin-1 where it is no UTF-8, UTF-8 where it is: neither is garbled by the other.
        assert load_plain_pickle(_file(tmp_path, data)) == [{"sent": "lady", "raw": "café é"}]


@pytest.mark.parametrize("protocol", range(6))
def test_code_is_refused_and_not_run(tmp_path, protocol):
    target = tmp_path / "ran"
    path = _file(tmp_path, pickle.dumps([{"sent": _Runs(target)}], protocol=protocol))
    with pytest.raises(UnsafePickleError, match=r"refs\(google\)\.p: refused, it asks for posix\.mkdir.*JSON"):
        load_plain_pickle(path)
    assert not target.exists()
    assert pickle.loads(path.read_bytes()) is not None  # the control: the standard reader does run it
    assert target.exists()


@pytest.mark.parametrize(
    "value", [np.float64(1.0), np.arange(3), Path("x"), collections.OrderedDict(a=1), print, int, complex(1, 2)]
)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_objects_are_refused(tmp_path, value, protocol):
    with pytest.raises(UnsafePickleError, match="asks for"):
        load_plain_pickle(_file(tmp_path, pickle.dumps([value], protocol=protocol)))


@pytest.mark.parametrize(
    "data",
    [
        b"(S'echo'\nios\nsystem\n.",  # INST
        b"]}(S'a'\nI1\nub.",  # BUILD
        b"]]R.",  # REDUCE without a global
        b"\x80\x04]]\x81.",  # NEWOBJ
        b"\x80\x02\x82\x01.",  # EXT1
        b"Pname\n.",  # PERSID
        b"]Q.",  # BINPERSID
        b"(]]o.",  # OBJ
    ],
)
def test_every_opcode_of_code_is_refused(tmp_path, data):
    with pytest.raises(UnsafePickleError):
        load_plain_pickle(_file(tmp_path, data))


def test_no_allocation_without_bytes_behind_it(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    harmless = [
        b"]r\xff\xff\xff\x7f.",  # memo index 2^31: the reader in C would allocate 32 GB
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 34) + b"].",  # frame of 16 GB
    ]
    claims = [
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 34) + b"x.",  # bytearray of 16 GB
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 34) + b"x.",  # bytes of 16 GB
        b"X\xff\xff\xff\x7fabc.",
    ]
    for data in harmless:
        assert load_plain_pickle(_file(tmp_path, data)) == []
    for data in claims:
        with pytest.raises(ValueError):
            load_plain_pickle(_file(tmp_path, data))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_damage_is_a_clear_error(tmp_path):
    good = pickle.dumps([PLAIN[0]] * 3, protocol=2)
    for cut in range(len(good)):
        with pytest.raises(ValueError, match="refs"):
            load_plain_pickle(_file(tmp_path, good[:cut]))
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(good)
        data[int(rng.integers(len(data)))] ^= int(rng.integers(1, 256))
        try:
            load_plain_pickle(_file(tmp_path, bytes(data)))
        except ValueError as error:
            assert "refs(google).p" in str(error)  # noqa: PT017 (a flipped byte inside a text is no error)


def test_missing_file_and_other_formats(tmp_path):
    with pytest.raises(OSError):
        load_plain_pickle(tmp_path / "none.p")
    for data in (b"", b"{}", b"<html>404</html>", b"\x1f\x8b\x08\x00"):
        with pytest.raises(ValueError, match=r"not a readable pickle|refused"):
            load_plain_pickle(_file(tmp_path, data))


@pytest.mark.parametrize("reader", [load_plain_pickle, ArrayPickle])
def test_a_name_with_line_breaks_is_refused_on_one_line(tmp_path, reader):
    for name in ("os\nsys", "a\u2028b", "\x1b[31m"):
        text = name.encode()
        piece = b"\x8c" + bytes([len(text)]) + text  # SHORT_BINUNICODE
        with pytest.raises(ValueError, match="it asks for ") as caught:
            reader(_file(tmp_path, b"\x80\x04" + piece + piece + b"\x93."))
        said = str(caught.value).split(" convert it to JSON")[0]
        assert said.isprintable()
