"""The header of an ``.npy``: the project's one reader of it. Who uses it holds the shape against the bytes that are there before it allocates.

numpy's own ``load`` believes any shape, and can run pickles.
"""

from __future__ import annotations

from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np


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
