"""Arrays in the bytes of an ``.npy``, and such bytes: the project's one reader of its header, which is held against the bytes that are there.

numpy's own ``load`` believes any shape, and can run pickles.
"""

from __future__ import annotations

import io
import math
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray


def read_npy_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, whether Fortran's order, type) that a header claims; the stream then stands at the numbers.

    Raises:
        ValueError: no header of version 1.0 or 2.0, or one that is damaged, or larger than numpy's limit of 10,000 bytes.
    """
    try:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"an npy file of version {version}; save it by numpy.save")
        shape, fortran, dtype = readers[version](stream)
    except (
        SyntaxError,
        TypeError,
        LookupError,
        AttributeError,
        RecursionError,
        MemoryError,
        OverflowError,
        TokenError,
    ) as error:
        raise ValueError(f"not a numpy array file ({type(error).__name__})") from None
    if any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"not a numpy array file (shape {shape!r:.80})")
    return shape, fortran, dtype


def npy_array(data: bytes) -> NDArray[Any]:
    """The array in the bytes of an ``.npy``: numbers only; a view of ``data``, for which nothing is allocated.

    Raises:
        ValueError: as ``read_npy_header``; another kind than numbers; more or fewer bytes than the header says.
    """
    stream = io.BytesIO(data)
    shape, fortran, dtype = read_npy_header(stream)
    if dtype.kind not in "fiu":
        raise ValueError(f"must be numbers, got {dtype} {list(shape)}")
    start = stream.tell()
    if math.prod(shape) * dtype.itemsize != len(data) - start:
        raise ValueError(
            f"its header says {list(shape)} numbers of {dtype}, which need {math.prod(shape) * dtype.itemsize} bytes, but "
            f"{len(data) - start} follow; the file is cut short or damaged"
        )
    return np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if fortran else "C")


def npy_bytes(array: NDArray[Any], dtype: DTypeLike) -> bytes:
    """The bytes of an ``.npy`` of version 1.0 that holds ``array`` as ``dtype``."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array, dtype=dtype), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()
