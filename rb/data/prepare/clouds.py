"""Arrays of untrusted ``.npy`` and ``.npz`` files, and clouds that can be used: what the converters of point clouds share."""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from rb.core.colours import unit_colours
from rb.core.npy_files import read_npy_header
from rb.core.stand_ins import stand_in
from rb.data.prepare.common import Reason, RejectedError

MAX_BYTES = 1 << 26  # of a cloud, unpacked: 2.8 million coloured points; ScanNet's largest scenes have 12 MB
_NPZ_MEMBER = "arr_0.npy"
_MAX_HEADER = 1 << 16
_MAX_LABEL = 1 << 16
_UNREADABLE = (
    ValueError,
    KeyError,
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    TypeError,
    AttributeError,
    IndexError,
    OverflowError,
    MemoryError,
    struct.error,
)


def parse_npy(data: bytes, columns: tuple[int, ...]) -> NDArray[Any]:
    """The floating point array [N, one of ``columns``] in the bytes of an ``.npy``.

    Its header is compared with the bytes that are there before anything is allocated; nothing in it is run.

    Raises:
        ValueError: it is none, or another shape.
    """
    array = _parse_array(data)
    if array.dtype.kind != "f" or array.ndim != 2 or array.shape[1] not in columns:
        wanted = " or ".join(map(str, columns))
        raise ValueError(f"the array must be floating point [N, {wanted}], got {array.dtype} {list(array.shape)}")
    return array


def parse_npy_labels(data: bytes, count: int) -> NDArray[np.int64]:
    """The whole numbers [``count``], 0 to 65,535, in the bytes of an ``.npy``; errors as of `parse_npy`."""
    array = _parse_array(data)
    if array.dtype.kind not in "iu" or array.shape != (count,):
        raise ValueError(f"the array must be whole numbers [{count}], got {array.dtype} {list(array.shape)}")
    if array.size and not 0 <= int(array.min()) <= int(array.max()) < _MAX_LABEL:
        raise ValueError(f"labels must be 0 to {_MAX_LABEL - 1:,}, got {array.min()} to {array.max()}")
    return array.astype(np.int64)


def _parse_array(data: bytes) -> NDArray[Any]:
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES:,} bytes of points")
    other = stand_in(data)
    if other:
        raise ValueError(other)
    stream = io.BytesIO(data)
    shape, fortran, dtype = read_npy_header(stream)
    if dtype.kind not in "fiu":
        raise ValueError(f"the array must be of numbers, got {dtype} {list(shape)}")
    start = stream.tell()
    if len(data) - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(data) - start} bytes of numbers, but the header says {list(shape)} {dtype}")
    return np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if fortran else "C")


def _npz_member(file: BinaryIO, most: int) -> bytes:
    """The first ``most`` bytes of the one array in an ``.npz``; ``ValueError`` where it claims to be larger than a cloud can be."""
    with zipfile.ZipFile(file) as archive:
        info = archive.getinfo(_NPZ_MEMBER)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{_NPZ_MEMBER} is compressed by method {info.compress_type}; numpy writes 0 or 8")
        if info.file_size > MAX_BYTES:
            raise ValueError(f"{_NPZ_MEMBER} claims {info.file_size:,} bytes, a cloud has at most {MAX_BYTES:,}")
        with archive.open(info) as member:
            return member.read(most)  # what the archive claims about its size is not believed


def claimed_points(path: Path) -> int:
    """How many points the header of ``path`` claims, without reading them; 0 where it has none that can be read."""
    try:
        with path.open("rb") as file:
            if path.suffix != ".npz":
                return int(read_npy_header(file)[0][0])
            return int(read_npy_header(io.BytesIO(_npz_member(file, _MAX_HEADER)))[0][0])
    except _UNREADABLE:
        return 0


def read_cloud(path: Path, min_points: int) -> NDArray[np.float32]:
    """[N, 3 | 6] float32 from ``.npy`` or the one array ``arr_0`` of ``.npz``, read without pickles and within bounds; colours in [0, 1].

    Raises:
        RejectedError: unreadable, too few points, numbers that are not finite in float32, all points in one place, colours of no known range.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES:,} bytes")
        data = path.read_bytes()
        if path.suffix == ".npz" and stand_in(data) is None:
            data = _npz_member(io.BytesIO(data), MAX_BYTES + 1)
        array = parse_npy(data, (3, 6))
    except _UNREADABLE as error:
        raise RejectedError(Reason.POINTS_UNREADABLE, f"{path}: {error}") from None
    return usable_cloud(array, str(path), min_points)


def usable_cloud(array: NDArray[Any], where: str, min_points: int) -> NDArray[np.float32]:
    """``array`` [N, 3 | 6] as float32, colours in [0, 1].

    Raises:
        RejectedError: too few points, numbers that are not finite in float32, all points in one place, colours of no known range.
    """
    from rb.sources.points import PointsError, cloud_frame  # loads torch, which parsers need not wait for

    if len(array) < min_points:
        raise RejectedError(Reason.TOO_FEW_POINTS, f"{where}: {len(array)} points, fewer than {min_points}")
    with np.errstate(over="ignore"):
        cloud = array.astype(np.float32)
    if not np.isfinite(cloud).all():
        raise RejectedError(
            Reason.POINTS_NOT_FINITE, f"{where}: {int((~np.isfinite(cloud)).any(1).sum())} points are not finite"
        )
    try:
        cloud_frame(cloud, where)
    except PointsError as error:
        raise RejectedError(Reason.POINTS_DEGENERATE, str(error)) from None
    if cloud.shape[1] == 6:
        try:
            cloud[:, 3:], _ = unit_colours(cloud[:, 3:])
        except ValueError as error:
            raise RejectedError(Reason.COLOURS_UNCLEAR, f"{where}: {error}") from None
    return cloud
