"""Clouds that a converter can use: read by the reader of people's clouds (`rb/sources/cloud_files.py`), what cannot be used rejected by reason."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rb.core.boxes import cloud_box_problem, points_in_box
from rb.core.colours import unit_colours
from rb.core.npy_files import npy_array
from rb.core.stand_ins import stand_in
from rb.data.prepare.common import Reason, RejectedError

MAX_BYTES = 1 << 26  # of a cloud, unpacked: 2.8 million coloured points; ScanNet's largest scenes have 12 MB
_MAX_LABEL = 1 << 16


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
    return npy_array(data)


def read_cloud(path: Path, min_points: int, most_bytes: int = MAX_BYTES) -> NDArray[np.float32]:
    """[N, 3 | 6] float32 of a file of any kind that the reader of clouds knows; colours in [0, 1].

    Raises:
        RejectedError: missing, unreadable, too few points, numbers that are not finite in float32, all points in one place, colours of no known
            range.
    """
    try:
        if path.is_fifo():
            raise RejectedError(Reason.POINTS_UNREADABLE, f"{path}: is a pipe, not a file")
        data = path.read_bytes() if path.stat().st_size <= most_bytes else None
    except OSError as error:
        raise RejectedError(Reason.POINTS_MISSING, f"{path}: {error.strerror or error}") from None
    if data is None:
        raise RejectedError(Reason.POINTS_UNREADABLE, f"{path}: more than {most_bytes:,} bytes")
    return cloud_of(data, path.suffix, str(path), min_points, most_bytes)


def cloud_of(
    data: bytes, extension: str, where: str, min_points: int, most_bytes: int = MAX_BYTES
) -> NDArray[np.float32]:
    """As ``read_cloud``, for the bytes of a file with such an ``extension``, as a member of an archive has them."""
    from rb.sources.cloud_files import (
        ColoursError,
        NotFiniteError,
        parse_cloud,
    )  # loads torch, which parsers need not wait for
    from rb.sources.points import PointsError

    if not data:
        raise RejectedError(Reason.POINTS_UNREADABLE, f"{where}: is empty; download it again")
    try:
        points = parse_cloud(data, extension, where, most_bytes).points
    except PointsError as error:
        reasons = {ColoursError: Reason.COLOURS_UNCLEAR, NotFiniteError: Reason.POINTS_NOT_FINITE}
        raise RejectedError(reasons.get(type(error), Reason.POINTS_UNREADABLE), str(error)) from None
    return usable_cloud(points, where, min_points)


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


def check_region(points: NDArray[np.floating], box: Sequence[float], what: str) -> None:
    """``RejectedError`` unless ``box`` (min xyz, max xyz) can be used for a cloud [N, 3 or more]: it has a volume, and holds a point."""
    problem = cloud_box_problem(box)
    if problem:
        raise RejectedError(
            problem, f"{what}: box {list(box)} has no volume from min xyz to max xyz, or numbers that are not finite"
        )
    if not points_in_box(points, box):
        low, high = points[:, :3].min(0), points[:, :3].max(0)
        outside = (np.array(box[3:]) < low).any() or (np.array(box[:3]) > high).any()
        raise RejectedError(
            Reason.BOX_OUTSIDE_CLOUD if outside else Reason.BOX_WITHOUT_POINTS,
            f"{what}: box {list(box)} {'lies outside' if outside else 'holds none of'} the {len(points):,} points; are box and points in the same "
            "coordinate frame?",
        )
