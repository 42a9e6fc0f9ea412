"""Arrays of untrusted ``.npy`` files, and clouds that can be used: what the converters of point clouds share."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rb.data.prepare.common import Reason, RejectedError

MAX_BYTES = 1 << 28  # a cloud of ten million coloured points


def parse_npy(data: bytes, columns: tuple[int, ...]) -> NDArray[Any]:
    """The floating point array [N, one of ``columns``] in the bytes of an ``.npy``.

    Its header is compared with the bytes that are there before anything is allocated; nothing in it is run.

    Raises:
        ValueError: it is none, or another shape.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES:,} bytes of points")
    stream = io.BytesIO(data)
    try:
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = readers[np.lib.format.read_magic(stream)](stream)
    except (SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise ValueError(f"not a numpy array file ({type(error).__name__})") from None
    if dtype.kind != "f" or len(shape) != 2 or shape[1] not in columns:
        wanted = " or ".join(map(str, columns))
        raise ValueError(f"points must be floating point [N, {wanted}], got {dtype} {list(shape)}")
    start = stream.tell()
    if shape[0] < 0 or len(data) - start != shape[0] * shape[1] * dtype.itemsize:
        raise ValueError(f"{len(data) - start} bytes of points, but the header says {list(shape)} {dtype}")
    return np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if fortran else "C")


def usable_cloud(array: NDArray[Any], where: str, min_points: int) -> NDArray[np.float32]:
    """``array`` as float32. ``RejectedError``: too few points, numbers that are not finite in float32, all points in one place."""
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
    return cloud
