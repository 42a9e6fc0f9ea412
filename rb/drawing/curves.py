"""Line charts as inline SVG: axes, grid, a faint line of values and a smoothed one per series, values under the mouse.

A chart holds at most ``MAX_POINTS`` points a series, whatever the length of the run: neighbours are averaged.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rb.drawing.page import Html, esc, json_script

WIDTH, HEIGHT = 380, 246
LEFT, TOP, RIGHT, BOTTOM = 58, 8, 372, 206  # the plot's edges
MAX_POINTS = 300
SMOOTHING_SPAN = 0.04  # a smoothed value reaches over about this share of the points to either side


@dataclass(frozen=True)
class Series:
    """One line: (step, value) in rising order of step. ``colour`` is c0 to c4; ``dashed`` for validation."""

    name: str
    colour: str
    points: Sequence[tuple[int, float]]
    dashed: bool = False


def thin(points: Sequence[tuple[float, float]], most: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most ``most`` points: means over equal runs of neighbours. Values that are not finite are left out before."""
    kept = [(x, y) for x, y in points if math.isfinite(y)]
    if len(kept) <= most:
        return kept
    edges = [round(i * len(kept) / most) for i in range(most + 1)]
    pieces = [kept[a:b] for a, b in itertools.pairwise(edges)]
    return [(round(sum(x for x, _ in p) / len(p)), sum(y for _, y in p) / len(p)) for p in pieces]


def smooth(points: Sequence[tuple[float, float]], span: float = SMOOTHING_SPAN) -> list[tuple[float, float]]:
    """The mean of two exponential means, one from either end, so that the line does not trail behind a steep fall."""
    values = [y for _, y in points]
    keep = 1.0 - 1.0 / max(1.0, span * len(points))
    forth, back = _trailing_mean(values, keep), _trailing_mean(values[::-1], keep)[::-1]
    return [(x, (f + b) / 2) for (x, _), f, b in zip(points, forth, back, strict=True)]


def _trailing_mean(values: Sequence[float], keep: float) -> list[float]:
    """The exponential mean so far at every place; its start is not pulled to zero."""
    total = weight = 0.0
    means = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1.0
        means.append(total / weight)
    return means


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * unit >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def label(value: float) -> str:
    """A number for an axis."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 1e-3:
        digits, power = f"{value:.2e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    if size >= 1e4:
        return f"{value / 1e3:.4g}k"
    return f"{value:.4g}"


def axis_title(text: str, x: float, y: float, upright: bool = False) -> str:
    """What an axis counts, centred at a place."""
    turned = f' transform="rotate(-90 {x:g} {y:g})"' if upright else ""
    return f'<text class="title" x="{x:g}" y="{y:g}" text-anchor="middle"{turned}>{esc(text)}</text>'


def chart(title: str, value: str, series: Sequence[Series], smoothing: bool = True, zero: bool = False) -> Html:
    """A figure with its caption; steps from left to right.

    Args:
        title: its caption.
        value: the title of the upright axis.
        series: the lines; those without a finite value are left out.
        smoothing: draw values faintly and their smoothed line over them.
        zero: let the value axis begin at 0.
    """
    drawn = [(one, thin([(float(x), y) for x, y in one.points])) for one in series]
    drawn = [(one, points) for one, points in drawn if points]
    body, data = _plot(drawn, value, smoothing, zero) if drawn else (_nothing(), None)
    return Html(
        f'<figure class="chart"><figcaption>{esc(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{esc(title)}">{body}</svg>'
        f'<div class="tip"></div>{json_script(data) if data else ""}</figure>\n'
    )


def _nothing() -> str:
    return f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">no finite values</text>'


def _plot(
    drawn: Sequence[tuple[Series, list[tuple[float, float]]]], value_title: str, smoothing: bool, zero: bool
) -> tuple[str, dict[str, object]]:
    lines = [(one, points, smooth(points) if smoothing and not one.dashed else points) for one, points in drawn]
    low_x = min(points[0][0] for _, points, _ in lines)
    high_x = max(points[-1][0] for _, points, _ in lines)
    low_y, high_y = _value_range([points for _, points, _ in lines], [line for _, _, line in lines], zero)
    across = (RIGHT - LEFT) / ((high_x - low_x) or 1.0)
    up = (BOTTOM - TOP) / (high_y - low_y)

    def place(point: tuple[float, float]) -> str:
        x, y = LEFT + (point[0] - low_x) * across, BOTTOM - (point[1] - low_y) * up
        return f"{x:.1f},{min(max(y, -50.0), HEIGHT + 50.0):.1f}"

    def path(points: Sequence[tuple[float, float]], classes: str) -> str:
        if len(points) == 1:
            x, y = place(points[0]).split(",")
            return f'<circle class="{classes}" cx="{x}" cy="{y}" r="2.5"/>'
        return f'<polyline class="{classes}" points="{" ".join(map(place, points))}"/>'

    parts = []
    for value in ticks(low_y, high_y):
        y = BOTTOM - (value - low_y) * up
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{label(value)}</text>')
    for value in ticks(low_x, high_x, 4):
        x = LEFT + (value - low_x) * across
        anchor = "end" if x > RIGHT - 12 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{BOTTOM + 16}" text-anchor="{anchor}">{label(value)}</text>')
    parts.append(axis_title("step", (LEFT + RIGHT) / 2, HEIGHT - 6))
    parts.append(axis_title(value_title, 11, (TOP + BOTTOM) / 2, upright=True))
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{BOTTOM}" y2="{BOTTOM}"/>')
    # A nested svg clips what leaves the plot, without ids that would have to be unique on the page.
    parts.append(
        f'<svg x="{LEFT}" y="{TOP}" width="{RIGHT - LEFT}" height="{BOTTOM - TOP}" viewBox="{LEFT} {TOP} {RIGHT - LEFT} {BOTTOM - TOP}">'
    )
    for one, points, line in lines:
        if line is not points:
            parts.append(path(points, f"s raw {one.colour}"))
    for one, _, line in lines:
        parts.append(path(line, f"s {one.colour}{' dash' if one.dashed else ''}"))
    parts.append("</svg>")
    parts.append(f'<line class="hair" y1="{TOP}" y2="{BOTTOM}"/>')
    data: dict[str, object] = {
        "plot": [LEFT, TOP, RIGHT, BOTTOM],
        "x": [low_x, high_x],
        "series": [
            {
                "name": one.name,
                "colour": one.colour,
                "points": [[round(x), float(f"{y:.5g}")] for x, y in line],
            }
            for one, _, line in lines
        ],
    }
    return "".join(parts), data


def _value_range(
    raw: Sequence[Sequence[tuple[float, float]]], lines: Sequence[Sequence[tuple[float, float]]], zero: bool
) -> tuple[float, float]:
    """The value axis: all of the smoothed lines, and the values without their largest two per cent (spikes leave the plot)."""
    values = sorted(y for points in raw for _, y in points)
    inner = values[: max(1, math.ceil(0.98 * len(values)))]
    low = min(inner[0], *(y for line in lines for _, y in line))
    high = max(inner[-1], *(y for line in lines for _, y in line))
    if zero:
        low = min(low, 0.0)
    if high <= low:
        pad = abs(high) * 0.1 or 1.0
        return low - pad, high + pad
    pad = 0.05 * (high - low)
    return (low if zero and low == 0.0 else low - pad), high + pad
