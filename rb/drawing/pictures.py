"""Images with a box, and point clouds, to turn with the mouse or still, as pieces of a self-contained page.

Pillow is imported where something is drawn: a model's sources import this file on machines without it (``launch/gpu_check.sh``).
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rb.core.boxes import cloud_box_corners
from rb.drawing.page import Html, esc

if TYPE_CHECKING:
    from PIL import Image

MAX_SIDE = 360
SMALL_SIDE = 160  # smaller images are enlarged without blur
MAX_CLOUD_POINTS = 2000
STILL_SIDE = 240
STILL_PAPER, STILL_INK, STILL_SOFT = np.array([236, 239, 243]), np.array([29, 102, 214]), np.array([91, 100, 116])
STILL_BOX = (255, 45, 85)


def image_with_box(image: Image.Image, box: Sequence[float] | None, text: str = "") -> Html:
    """``image`` at most 360 pixels a side, its box (pixels x1 y1 x2 y2 of the image as given) drawn over it.

    ``text`` is what a screen reader says.
    """
    from PIL.Image import Resampling

    width, height = image.size
    shrink = min(1.0, MAX_SIDE / max(width, height))
    small = image.convert("RGB")
    if shrink < 1.0:
        small = small.resize((max(1, round(width * shrink)), max(1, round(height * shrink))), Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82 if shrink < 1.0 else 92, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    rectangles = ""
    if box is not None:
        x1, y1, x2, y2 = (float(v) for v in box)
        shape = f'x="{x1:g}" y="{y1:g}" width="{x2 - x1:g}" height="{y2 - y1:g}"'
        rectangles = f'<rect class="box under" {shape}/><rect class="box over" {shape}/>'
    kind = ' class="small"' if max(width, height) < SMALL_SIDE else ""
    return Html(
        f'<svg{kind} viewBox="0 0 {width} {height}" role="img" aria-label="{esc(text)}">'
        f'<image href="data:image/jpeg;base64,{data}" width="{width}" height="{height}" preserveAspectRatio="none"/>{rectangles}</svg>'
    )


def cloud_canvas(
    points: NDArray[np.floating], box: Sequence[float] | None = None, up: str = "y", text: str = ""
) -> Html:
    """A cloud [N, 3 | 6] (columns 3-5: colour, 0 to 1 or 0 to 255) of which 2,000 evenly picked points are drawn, in 16-bit steps.

    ``box``: min xyz, max xyz in the cloud's units. ``up``: which axis points up, "y" or "z".
    """
    kept, xyz, centre, radius = _framed(points, box)
    attributes = {"up": up, "points": _base64(np.round((xyz - centre) / radius * 32767).astype("<i2"))}
    if kept.shape[1] >= 6:
        attributes["colours"] = _base64(_colours(kept))
    if box is not None:
        ends = (np.asarray(box, dtype=np.float64) - np.tile(centre, 2)) / radius
        attributes["box"] = json.dumps([round(float(v), 4) for v in ends])
    data = " ".join(f'data-{name}="{esc(value)}"' for name, value in attributes.items())
    return Html(f'<canvas class="cloud" role="img" aria-label="{esc(text)}" {data}></canvas>')


def cloud_still(
    points: NDArray[np.floating], box: Sequence[float] | None = None, up: str = "y", text: str = ""
) -> Html:
    """A static image of the cloud and its box in their initial view, for pages without JavaScript."""
    kept, xyz, centre, radius = _framed(points, box)
    size = STILL_SIDE * 2  # drawn twice as large and shrunk, for smooth edges
    seen = _seen((xyz - centre) / radius, up)
    inside: NDArray[np.bool_] = np.ones(len(xyz), dtype=bool)
    if box is not None:
        low, high = np.asarray(box[:3]) - 1e-3 * radius, np.asarray(box[3:]) + 1e-3 * radius
        inside = np.all((xyz >= low) & (xyz <= high), axis=1)
    ink = _colours(kept).astype(float) if kept.shape[1] >= 6 else np.where(inside[:, None], STILL_INK, STILL_SOFT)
    near = np.clip((seen[:, 2:] + 1) / 2, 0, 1)
    shades = (STILL_PAPER + (ink - STILL_PAPER) * (0.25 + 0.75 * near)).round().astype(int)
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (size, size), tuple(int(v) for v in STILL_PAPER))
    pen = ImageDraw.Draw(image)
    for i in np.argsort(seen[:, 2]):
        x, y, r = *(size * (0.5 + 0.48 * seen[i, :2])), size / 240 * (1 + 1.1 * float(near[i, 0]))
        pen.ellipse([x - r, y - r, x + r, y + r], fill=tuple(shades[i].tolist()))
    if box is not None:
        corners = size * (0.5 + 0.48 * _seen((cloud_box_corners(box) - centre) / radius, up)[:, :2])
        for a, b in _edges(cloud_box_corners(box)):
            pen.line([*corners[a], *corners[b]], fill=STILL_BOX, width=size // 120)
    buffer = io.BytesIO()
    still = image.resize((STILL_SIDE, STILL_SIDE), Image.Resampling.LANCZOS)
    still.quantize(128).save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Html(f'<img class="still" alt="{esc(text)}" src="data:image/png;base64,{data}">')


def _framed(
    points: NDArray[np.floating], box: Sequence[float] | None
) -> tuple[NDArray[np.floating], NDArray[np.float64], NDArray[np.float64], float]:
    """The points that are drawn [n, C], their coordinates [n, 3], and centre and radius of all that is seen."""
    kept = points[np.linspace(0, len(points) - 1, min(len(points), MAX_CLOUD_POINTS)).round().astype(np.int64)]
    xyz = np.asarray(kept[:, :3], dtype=np.float64)
    shown = xyz if box is None else np.concatenate([xyz, cloud_box_corners(box)])
    centre = (shown.min(0) + shown.max(0)) / 2
    return kept, xyz, centre, float(np.linalg.norm(shown - centre, axis=1).max()) or 1.0


def _seen(xyz: NDArray[np.float64], up: str) -> NDArray[np.float64]:
    """Coordinates in the cloud's frame [n, 3] as page.js sees them at first: right, down, towards the eye."""
    turn, tilt = (-0.35, 0.65) if up == "z" else (-0.6, 0.38)
    x, y, z = xyz.T if up != "z" else (xyz[:, 0], xyz[:, 2], -xyz[:, 1])
    u, d = math.cos(turn) * x + math.sin(turn) * z, math.cos(turn) * z - math.sin(turn) * x
    return np.stack([u, math.sin(tilt) * d - math.cos(tilt) * y, math.sin(tilt) * y + math.cos(tilt) * d], axis=1)


def _edges(corners: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Pairs of corners that differ along one axis."""
    pairs = itertools.combinations(range(len(corners)), 2)
    return [(a, b) for a, b in pairs if np.count_nonzero(corners[a] != corners[b]) == 1]


def _colours(kept: NDArray[np.floating]) -> NDArray[np.uint8]:
    colours = np.asarray(kept[:, 3:6], dtype=np.float64)
    return np.clip(colours * 255.0 if colours.max() <= 1.0 else colours, 0, 255).astype(np.uint8)


def _base64(array: NDArray[np.generic]) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
