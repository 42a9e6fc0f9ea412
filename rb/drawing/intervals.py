"""Values with their intervals, one below the other on one axis, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence

from rb.drawing.curves import axis_title, label, ticks
from rb.drawing.page import Html, esc

WIDTH, LEFT, RIGHT, ROW = 720, 150, 700, 26


def interval_chart(
    title: str, value: str, rows: Sequence[tuple[str, float, float, float]], line: float | None = None
) -> Html:
    """A figure with its caption.

    Args:
        title: its caption.
        value: the title of the axis.
        rows: name, value, lower and upper end of each, from top to bottom.
        line: where a vertical line marks what the others are compared with.
    """
    marks = [v for _, *values in rows for v in values] + ([] if line is None else [line])
    low, high = min(marks), max(marks)
    pad = 0.06 * (high - low) or 1.0
    low, high = low - pad, high + pad
    bottom = 6 + ROW * len(rows)

    def place(value: float) -> str:
        return f"{LEFT + (value - low) / (high - low) * (RIGHT - LEFT):.1f}"

    parts = []
    for mark in ticks(low, high, 7):
        x = place(mark)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="6" y2="{bottom}"/>')
        parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{label(mark)}</text>')
    if line is not None:
        parts.append(f'<line class="mark" x1="{place(line)}" x2="{place(line)}" y1="6" y2="{bottom}"/>')
    for k, (name, middle, start, end) in enumerate(rows):
        y = 6 + ROW * (k + 0.5)
        shown = f"{name}: {middle:.1f}, from {start:.1f} to {end:.1f}"
        parts.append(
            f'<g class="c{k % 5}"><title>{esc(shown)}</title><text x="{LEFT - 12}" y="{y + 4:.1f}" text-anchor="end">{esc(name)}</text>'
            f'<line class="s" x1="{place(start)}" x2="{place(end)}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<circle class="s" cx="{place(middle)}" cy="{y:.1f}" r="4"/></g>'
        )
    parts.append(axis_title(value, (LEFT + RIGHT) / 2, bottom + 34))
    return Html(
        f'<figure class="chart intervals"><figcaption>{esc(title)}</figcaption><svg viewBox="0 0 {WIDTH} {bottom + 40}" '
        f'role="img" aria-label="{esc(title)}">{"".join(parts)}</svg></figure>\n'
    )
