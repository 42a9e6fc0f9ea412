"""Pickles of lists of arrays: read as numpy writes them, from Python 2 on; everything else is refused before anything runs."""

from __future__ import annotations

import os
import pickle
import struct
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from rb.data.prepare import array_pickle
from rb.data.prepare.array_pickle import ArrayPickle, ArrayPickleError

RNG = np.random.default_rng(0)
CLOUDS = [RNG.normal(size=(64, 6)).astype(np.float32) for _ in range(5)]
LABELS = [np.array([k], np.int32) for k in range(5)]


def file(folder: Path, data: bytes) -> Path:
    path = folder / "modelnet40_test_8192pts_fps.dat"
    path.write_bytes(data)
    return path


def arrays(found: ArrayPickle) -> list[list[np.ndarray]]:
    return [[found.read(stored) for stored in row] for row in found.rows]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("protocol", [1, 2, 3, 4])
def test_lists_of_arrays_of_every_protocol(tmp_path, protocol, old):
    """``old``: numpy's own name of its constructor before numpy 2, under which the published file was written."""
    data = pickle.dumps([CLOUDS, LABELS], protocol=protocol)
    if old and protocol < 4:
        data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    found = ArrayPickle(file(tmp_path, data))
    with ThreadPoolExecutor(4) as pool:
        for row, wanted in zip(found.rows, (CLOUDS, LABELS), strict=True):
            for got, array in zip(pool.map(found.read, row), wanted, strict=True):
                assert got.dtype == array.dtype
                np.testing.assert_array_equal(got, array)


def test_other_types_and_orders(tmp_path):
    kinds = [np.float64, ">f4", "<f2", np.uint8, ">i8"]
    wanted = [np.asfortranarray(RNG.integers(0, 9, (7, 6)).astype(kind)) for kind in kinds]
    for got, array in zip(*arrays(ArrayPickle(file(tmp_path, pickle.dumps([wanted], 4)))), wanted, strict=True):
        assert got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)


def test_as_python_2_wrote_it(tmp_path):
    """Protocol 2 of Python 2: byte strings where Python 3 has bytes, and names without a codec."""
    raw = CLOUDS[0].tobytes()
    shape = b"K\x40K\x06\x86"
    kind = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    data = b"\x80\x02]]" + array + b"(K\x01" + shape + kind + b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tbaa."
    ((cloud,),) = arrays(ArrayPickle(file(tmp_path, data)))
    np.testing.assert_array_equal(cloud, CLOUDS[0])


class _Runs:
    """Makes a folder when it is unpickled by a reader that runs code."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
REFUSED = {
    "an object array": (pickle.dumps([[np.array([{}, None])]], 4), "asks for numpy.dtype of 'O8'"),
    "records": (pickle.dumps([[np.zeros(2, [("a", "f4")])]], 4), "asks for numpy.dtype of 'V4'"),
    "dates": (pickle.dumps([[np.zeros(2, "M8[s]")]], 4), "asks for numpy.dtype of 'M8'"),
    "a scalar": (pickle.dumps([np.float32(1)], 4), "asks for numpy._core.multiarray.scalar"),
    "a dict": (pickle.dumps([{"a": 1}], 4), "the step EMPTY_DICT"),
    "protocol 5": (pickle.dumps([CLOUDS], 5), "asks for numpy._core.numeric._frombuffer"),
    "three axes": (pickle.dumps([[np.zeros((1, 1, 3), "f4")]], 4), "more than two axes"),
    "a constructor of another class": (RECONSTRUCT + b"cnumpy\ndtype\nK\x00\x85U\x01b\x87R.", "_reconstruct of"),
    "another codec": (b"c_codecs\nencode\n(U\x01aU\x03hextR.", "_codecs.encode of"),
    "lists of numbers": (pickle.dumps([[1, 2]], 4), "other things than lists of arrays"),
    "an array without its state": (RECONSTRUCT + b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R\x85.", "other things"),
    "an extension": (b"\x82\x01.", "the step EXT1"),
    "a persistent id": (b"Pa\n.", "the step PERSID"),
    "a bytearray of 2^62": (b"\x96" + struct.pack("<Q", 1 << 62) + b".", "claims an array of"),
    "an array of 2^62": (b"\x8e" + struct.pack("<Q", 1 << 62) + b".", "claims an array of"),
    "an array of 4 GiB": (b"B\xff\xff\xff\xff.", "claims an array of 4,294,967,295 bytes"),
    "a long line": (b"c" + b"a" * 5000 + b"\nb\n.", "a line of more than 1,024 bytes"),
    "a call of a list": (b"])R.", "calls something that is no constructor"),
    "a name of a nest of tuples": (b")" + b"\x85" * 5_000 + b"2\x93.", "no list of arrays needs"),
    "a name that is no text": (b")" + b"\x85" * 5_000 + b")\x93.", "a name that is no text"),
    "a type of a nest of tuples": (b"cnumpy\ndtype\n)" + b"\x85" * 5_000 + b"R.", "numpy.dtype of 'tuple'"),
}  # fmt: skip
DAMAGED = {
    "nothing": b"",
    "no pickle": b"hello",
    "cut": pickle.dumps([CLOUDS], 4)[:-400],
    "no end": b"]",
    "no mark": b"]K\x01e.",
    "two values": b"]].",
    "a memo that is not there": b"h\x05.",
    "an empty stack": b"a.",
    "a state of one": RECONSTRUCT + b"cnumpy\nndarray\nK\x00\x85U\x01b\x87RK\x01b.",
    "a number of 1,000 digits": b"I" + b"9" * 5000 + b"\n.",
}


def test_code_is_refused_and_not_run(tmp_path):
    for protocol in range(5):
        path = file(tmp_path, pickle.dumps([[_Runs(tmp_path / "ran")]], protocol=protocol))
        with pytest.raises(ArrayPickleError, match=r"fps\.dat: refused, it asks for (posix|nt)\.mkdir"):
            ArrayPickle(path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(path.read_bytes())  # the control: the standard reader does run it
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_list_of_arrays_is_refused(tmp_path, case):
    data, words = REFUSED[case]
    tracemalloc.start()
    with pytest.raises(ArrayPickleError, match=words) as refused:
        ArrayPickle(file(tmp_path, data))
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()
    assert "\n" not in str(refused.value)
    assert "nothing was run" in str(refused.value)


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_one_line(tmp_path, case):
    with pytest.raises(ValueError, match=r"fps\.dat: (not a readable pickle of arrays|refused, it)") as refused:
        ArrayPickle(file(tmp_path, DAMAGED[case]))
    assert "\n" not in str(refused.value)


def test_a_shape_that_does_not_fit_costs_one_array(tmp_path):
    data = pickle.dumps([CLOUDS], 3).replace(b"K\x40K\x06", b"K\x41K\x06", 1)
    found = ArrayPickle(file(tmp_path, data))
    with pytest.raises(ValueError, match=r"1,536 bytes of numbers for an array \[65, 6\] of float32"):
        found.read(found.rows[0][0])


def test_memory_is_not_the_files(tmp_path):
    """40 MB of numbers: what is held is where they stand."""
    big = [np.zeros((8192, 6), np.float32) + k for k in range(200)]
    path = file(tmp_path, pickle.dumps([big, LABELS], 3))
    tracemalloc.start()
    found = ArrayPickle(path)
    assert found.read(found.rows[0][7])[0, 0] == 7
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()


def test_many_small_steps_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(array_pickle, "MAX_STEPS", 100)
    with pytest.raises(ArrayPickleError, match="more than 100 steps"):
        ArrayPickle(file(tmp_path, b"]" * 200))
