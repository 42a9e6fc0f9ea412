"""Images with a box, and point clouds to turn with the mouse, as pieces of a self-contained page."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rb.core.boxes import cloud_box_corners
from rb.drawing.page import Html, esc

MAX_SIDE = 360
SMALL_SIDE = 160  # smaller images are enlarged without blur
MAX_CLOUD_POINTS = 2000


def image_with_box(image: Image.Image, box: Sequence[float] | None, text: str = "") -> Html:
    """``image`` at most 360 pixels a side, its box (pixels x1 y1 x2 y2 of the image as given) drawn over it.

    ``text`` is what a screen reader says.
    """
    width, height = image.size
    shrink = min(1.0, MAX_SIDE / max(width, height))
    small = image.convert("RGB")
    if shrink < 1.0:
        small = small.resize((max(1, round(width * shrink)), max(1, round(height * shrink))), Image.Resampling.LANCZOS)
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
    kept = points[np.linspace(0, len(points) - 1, min(len(points), MAX_CLOUD_POINTS)).round().astype(np.int64)]
    xyz = np.asarray(kept[:, :3], dtype=np.float64)
    shown = xyz if box is None else np.concatenate([xyz, cloud_box_corners(box)])
    centre = (shown.min(0) + shown.max(0)) / 2
    radius = float(np.linalg.norm(shown - centre, axis=1).max()) or 1.0
    attributes = {"up": up, "points": _base64(np.round((xyz - centre) / radius * 32767).astype("<i2"))}
    if kept.shape[1] >= 6:
        colours = np.asarray(kept[:, 3:6], dtype=np.float64)
        colours = colours * 255.0 if colours.max() <= 1.0 else colours
        attributes["colours"] = _base64(np.clip(colours, 0, 255).astype(np.uint8))
    if box is not None:
        ends = (np.asarray(box, dtype=np.float64) - np.tile(centre, 2)) / radius
        attributes["box"] = json.dumps([round(float(v), 4) for v in ends])
    data = " ".join(f'data-{name}="{esc(value)}"' for name, value in attributes.items())
    return Html(f'<canvas class="cloud" role="img" aria-label="{esc(text)}" {data}></canvas>')


def _base64(array: NDArray[np.generic]) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
