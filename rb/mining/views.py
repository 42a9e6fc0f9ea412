"""What the captioner sees of a region: cut out on white, or with its background; and masks as COCO's run lengths.

The paper cuts on white to name a thing and with the background to describe it. A picture is filled up to a square rather than squashed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from pycocotools import mask as coco_masks

from rb.mining.record import Region

WHITE = (255, 255, 255)


def encode_mask(mask: np.ndarray) -> str:
    """A mask [H, W] bool as COCO's compressed counts."""
    return coco_masks.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode("ascii")


def decode_mask(rle: str, size: tuple[int, int]) -> np.ndarray:
    """The mask [H, W] bool of an image of ``size`` (width, height)."""
    return coco_masks.decode({"counts": rle.encode("ascii"), "size": [size[1], size[0]]}).astype(bool)


def box_of_mask(mask: np.ndarray) -> list[float]:
    """x1 y1 x2 y2 around a mask [H, W] that holds a pixel; x2 and y2 are behind the last one."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [float(v) for v in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]


def on_white(image: Image.Image, region: Region, pad: float, square: bool) -> Image.Image:
    """The region alone: everything outside of its mask is white."""
    mask = Image.fromarray(decode_mask(region.rle, image.size))
    return _cut(
        Image.composite(image, Image.new("RGB", image.size, WHITE), mask), region.box, pad, square, inside=False
    )


def cropped(image: Image.Image, box: Sequence[float], pad: float, square: bool) -> Image.Image:
    """The box with its background, within the image where that is large enough."""
    return _cut(image, box, pad, square, inside=True)


def _cut(image: Image.Image, box: Sequence[float], pad: float, square: bool, inside: bool) -> Image.Image:
    """A box with ``pad`` of its sides around it; what lies outside of the image is white.

    Args:
        inside: keep to the image where that is possible: a square is moved into it, another box is cut at its border.
    """
    spans = []
    side = max(box[2] - box[0], box[3] - box[1])
    for low, high, most in ((box[0], box[2], image.width), (box[1], box[3], image.height)):
        length = max((side if square else high - low) * (1 + 2 * pad), 1)
        start = (low + high - length) / 2
        if inside and square:
            start = min(max(start, 0), max(most - length, 0)) if length <= most else (most - length) / 2
        spans.append((round(start), max(round(start + length), round(start) + 1)))
    (x1, x2), (y1, y2) = spans
    if not square and inside:
        return image.crop((max(x1, 0), max(y1, 0), min(x2, image.width), min(y2, image.height)))
    canvas = Image.new("RGB", (x2 - x1, y2 - y1), WHITE)
    canvas.paste(image, (-x1, -y1))
    return canvas
