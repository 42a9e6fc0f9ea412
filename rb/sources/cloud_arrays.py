"""Clouds that are one array of numbers: ``.npy``, ``.npz`` (numpy) and ``.pt`` (torch). Used by `cloud_files.py`.

What a header or an archive claims is held against the bytes that are there before anything is allocated; nothing in a file is run.
"""

from __future__ import annotations

import io
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import NDArray

from rb.core.npy_files import npy_array, read_npy_header
from rb.core.torch_files import DAMAGE, load_tensor

MAX_BYTES = 1 << 30  # of a file: 40 million coloured points; a model reads some thousands
WIDTHS = (3, 6)  # x y z, or x y z and red green blue
_NPZ_MEMBER = "arr_0.npy"
_MAX_HEADER = 1 << 16
_UNREADABLE = (
    ValueError,
    LookupError,
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
    struct.error,
)


def read_npz(data: bytes, most: int) -> NDArray[Any]:
    """The one array ``arr_0`` of an ``.npz`` that unpacks to at most ``most`` bytes. ``ValueError``: there is none, or it is damaged."""
    try:
        return npy_array(_npz_member(io.BytesIO(data), most, most + 1))
    except _UNREADABLE as error:
        raise ValueError(str(error)) from None


def read_pt(data: bytes) -> NDArray[Any]:
    """A tensor [N, 3 | 6], or [3 | 6, N] as Cap3D has them, as [N, 3 | 6]. ``ValueError``: another content.

    Few points can be read in both ways; then they are rows, as in all other kinds of file.
    """
    with tempfile.NamedTemporaryFile(
        suffix=".pt"
    ) as file:  # only what is mapped is held against the file's size by torch
        file.write(data)
        file.flush()
        try:
            tensor = load_tensor(Path(file.name))
            array = (tensor if tensor.dtype.itemsize != 2 else tensor.float()).numpy().copy()
        except DAMAGE as error:
            words = " ".join(str(error).split())[:200]
            raise ValueError(f"not one tensor as torch.save writes it ({words})") from None
    if array.ndim == 2 and array.shape[1] not in WIDTHS and array.shape[0] in WIDTHS:
        return array.T
    return array


def claimed_points(path: Path) -> int:
    """How many points the header of an ``.npy`` or ``.npz`` claims, without reading them; 0 where it has none that can be read."""
    try:
        with path.open("rb") as file:
            if path.suffix != ".npz":
                return int(read_npy_header(file)[0][0])
            return int(read_npy_header(io.BytesIO(_npz_member(file, 1 << 62, _MAX_HEADER)))[0][0])
    except _UNREADABLE:
        return 0


def _npz_member(file: BinaryIO, allowed: int, most: int) -> bytes:
    """The first ``most`` bytes of the one array in an ``.npz``; ``ValueError`` where it claims more than is ``allowed``."""
    with zipfile.ZipFile(file) as archive:
        info = archive.getinfo(_NPZ_MEMBER)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{_NPZ_MEMBER} is compressed by method {info.compress_type}; numpy writes 0 or 8")
        if info.file_size > allowed:
            raise ValueError(f"{_NPZ_MEMBER} claims {info.file_size:,} bytes, a cloud has at most {allowed:,}")
        with archive.open(info) as member:
            return member.read(most)  # what the archive claims about its size is not believed
