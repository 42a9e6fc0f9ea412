"""What callers of the Python API give, made ready: images and clouds of any common kind, boxes checked and normalised.

Every error says which image, cloud or box it is about and what would be right. Used by ``rb/api/model.py`` only.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from rb.core.boxes import cloud_box_problem, image_box_problem, normalise_image_box, points_in_box
from rb.core.colours import unit_colours
from rb.sources.cloud_files import COLOURS_DIVIDED, read_cloud
from rb.sources.pixels import UPRIGHT, ImageError, decode_upright, orientation_of, to_rgb, turned

log = logging.getLogger(__name__)

BOX_FORMATS = ("pixels", "normalised")
CLOUD_BOX_FORMATS = ("metres", "normalised")
ImageInput = Image.Image | NDArray[Any] | Tensor | str | Path
PointsInput = NDArray[Any] | Tensor | str | Path


class InputError(ValueError):
    """An image, cloud or box that cannot be used."""


def listed(given: Any, single_ndim: int) -> tuple[list[Any], bool]:
    """(the inputs, whether one alone was given); arrays of ``single_ndim`` dimensions and images are one."""
    if isinstance(given, Image.Image | str | Path):
        return [given], True
    if isinstance(given, np.ndarray | Tensor):
        return ([given], True) if given.ndim <= single_ndim else (list(given), False)
    return list(given), False


def rgb_image(given: ImageInput, where: str) -> tuple[Image.Image, int]:
    """Any image as RGB and upright, and the EXIF orientation of what was given (1: nothing was turned).

    Args:
        given: a PIL image; a file; [H, W, 3], [H, W] or (torch) [3, H, W], uint8 or floats in [0, 1].

    Raises:
        InputError: another shape or type, numbers outside [0, 1] or not finite, a PIL image of 32-bit numbers.
        ImageError: a file that cannot be decoded.
    """
    if isinstance(given, str | Path):
        return decode_upright(Path(given).read_bytes(), str(given))
    if isinstance(given, Image.Image):
        try:
            orientation = orientation_of(given)
            return turned(to_rgb(given, where), orientation), orientation
        except ImageError as error:
            raise InputError(str(error)) from None
    if isinstance(given, Tensor):
        array = given.detach().cpu().numpy()
        if array.ndim == 3 and array.shape[0] == 3:
            array = array.transpose(1, 2, 0)
    else:
        array = np.asarray(given)
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] == 3)) or 0 in array.shape:
        raise InputError(f"{where}: shape {tuple(array.shape)}; give [H, W, 3], [H, W], or a torch tensor [3, H, W]")
    if array.dtype != np.uint8:
        if not np.issubdtype(array.dtype, np.floating):
            raise InputError(f"{where}: type {array.dtype}; give uint8 in 0..255 or floats in 0..1")
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise InputError(f"{where}: floats must be finite and lie in 0..1; give uint8 for 0..255")
        array = np.round(array * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB"), UPRIGHT


def cloud(given: PointsInput, where: str) -> NDArray[np.float32]:
    """A cloud as [N, 3 | 6] float32, colours in [0, 1]: an array, or a file (``rb/sources/cloud_files.py``; what was done to its points is logged).

    Raises:
        InputError: another shape, a coordinate that is not finite, colours of no known range.
        PointsError: a file that cannot be read.
    """
    if isinstance(given, str | Path):
        found = read_cloud(Path(given))
        for sentence in found.notes:
            log.warning("%s: %s", given, sentence)
        return found.points
    array = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    if array.ndim != 2 or array.shape[1] not in (3, 6) or len(array) < 1 or array.dtype.kind not in "fiu":
        raise InputError(
            f"{where}: shape {tuple(array.shape)} of {array.dtype}; give [N, 3] xyz or [N, 6] xyz and colour"
        )
    points = array.astype(np.float32)
    bad = ~np.isfinite(points).all(axis=1)
    if bad.any():
        raise InputError(
            f"{where}: {int(bad.sum())} of {len(points)} points are not finite (NaN or infinite), first {int(bad.argmax())}; remove them"
        )
    if points.shape[1] == 6:
        try:
            points[:, 3:], divided = unit_colours(points[:, 3:])
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None
        if divided:
            log.warning("%s: %s", where, COLOURS_DIVIDED)
    return points


def box_rows(given: Any, length: int, where: str) -> tuple[list[list[float]], bool]:
    """(boxes, whether one alone was given) of one source; ``InputError`` unless [length] or [n, length]."""
    array = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given, dtype=object)
    try:
        array = array.astype(np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{where}: boxes must be numbers, [{length}] or [n, {length}], got {given!r}") from None
    if array.shape == (length,):
        return [array.tolist()], True
    if array.ndim == 2 and array.shape[1] == length:
        return array.tolist(), False
    if array.shape == (0,):
        return [], False
    raise InputError(f"{where}: boxes have shape {tuple(array.shape)}; give [{length}] or [n, {length}]")


def image_box(
    box: Sequence[float],
    size: tuple[int, int],
    box_format: str,
    where: str,
    whole_pixels: bool = False,
    check_format: bool = True,
) -> list[float]:
    """x1 y1 x2 y2 in pixels or normalised -> [0, 1]; ``whole_pixels`` as in ``model.box2d``.

    Without ``check_format`` a box within the first pixel is taken for what ``box_format`` says.

    Raises:
        InputError: empty, outside the image, or apparently in the other format.
    """
    width, height = size
    if box_format == "normalised":
        if max(box) > 1.5:
            raise InputError(f"{where}: {list(box)} is not within 0..1; if these are pixels, say box_format='pixels'")
        pixels = [box[0] * width, box[1] * height, box[2] * width, box[3] * height]
    else:
        pixels = list(box)
        if check_format and max(box) <= 1 and min(size) > 2:
            raise InputError(f"{where}: {pixels} is within one pixel; if it is normalised, say box_format='normalised'")
    problem = image_box_problem(pixels, width, height)
    if problem == "box_outside_image":
        raise InputError(f"{where}: {list(box)} leans out of the image of {width} x {height} pixels; clip it")
    if problem is not None:
        raise InputError(
            f"{where}: {list(box)} is empty or not finite; it must be x1 y1 x2 y2 with x1 < x2 and y1 < y2"
        )
    return normalise_image_box(pixels, width, height, whole_pixels)


def cloud_box(box: Sequence[float], points: NDArray[np.float32], box_format: str, where: str) -> list[float]:
    """A box (min xyz, max xyz) in the cloud's own units.

    Args:
        box_format: "metres", the cloud's own units, or "normalised", 0 to 1 along each axis of its extent.

    Raises:
        InputError: empty, apparently in the other format, or holding none of the cloud's points.
    """
    low, high = points[:, :3].min(axis=0).astype(np.float64), points[:, :3].max(axis=0).astype(np.float64)
    own = list(box)
    if cloud_box_problem(box) is not None:
        raise InputError(f"{where}: {own} is empty or not finite; it must be min x y z, max x y z with min < max")
    if box_format == "normalised":
        if min(box) < -0.5 or max(box) > 1.5:
            raise InputError(
                f"{where}: {own} is not within 0..1; if it is in the cloud's own units, say box_format='metres'"
            )
        own = (np.tile(low, 2) + np.asarray(box, dtype=np.float64) * np.tile(high - low, 2)).tolist()
    if any(own[i] > high[i] or own[3 + i] < low[i] for i in range(3)):
        extent = f"{np.round(low, 3).tolist()} to {np.round(high, 3).tolist()}"
        raise InputError(
            f"{where}: {list(box)} lies outside the cloud, which reaches from {extent}; boxes are in the cloud's own units, or normalised"
        )
    if not points_in_box(points, own):
        raise InputError(f"{where}: {list(box)} holds none of the cloud's {len(points)} points; give a box that does")
    return own


def check_box_format(box_format: str | None) -> str:
    """The format of an image's boxes, which must be given."""
    if box_format not in BOX_FORMATS:
        raise InputError(f"box_format: {box_format!r}; say 'pixels' or 'normalised' (divided by width and height)")
    return box_format


def check_cloud_box_format(box_format: str) -> str:
    """The format of a cloud's boxes."""
    if box_format not in CLOUD_BOX_FORMATS:
        raise InputError(
            f"box_format: {box_format!r}; say 'metres' (the cloud's own units) or 'normalised' (0 to 1 along each axis of its extent)"
        )
    return box_format


def per_source(boxes: Any, count: int, single: bool, what: str) -> list[Any]:
    """Boxes for each of ``count`` sources; ``InputError`` where the numbers differ."""
    if single:
        return [boxes]
    rows = list(boxes)
    if len(rows) != count:
        raise InputError(
            f"boxes: {len(rows)} entries for {count} {what}; give one entry (a box or a list of boxes) for each"
        )
    return rows


def to_tensor(rows: list[list[float]]) -> Tensor:
    """Boxes [n, 4] float32."""
    return torch.tensor(rows, dtype=torch.float32)
