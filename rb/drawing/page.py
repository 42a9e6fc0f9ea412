"""Self-contained HTML pages: the frame with its style and script inside, and small pieces (tables, facts, notes).

Every text is escaped here; a caller that passes ready HTML does so through arguments named ``html``, or as a ``Html`` value.
"""

from __future__ import annotations

import html as _html
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path

from rb.core.files import write_whole

CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


class Html(str):
    """Text that is HTML already and is not escaped again."""

    __slots__ = ()


def esc(value: object) -> str:
    """``value`` as HTML text, safe in attributes too; ``Html`` passes unchanged."""
    return value if isinstance(value, Html) else _html.escape(str(value))


def json_script(value: object, attributes: str = 'type="application/json"') -> Html:
    """``value`` as a script element that no text inside can close."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return Html(f"<script {attributes}>{text}</script>")


def page(title: str, html: str, script: bool = True) -> str:
    """A whole document. It loads nothing: a content policy forbids it. ``script``: false for a page that only shows."""
    files = resources.files("rb.drawing")
    css, js = (files.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{esc(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n{html}\n</main>\n"
        + (f"<script>\n{js}</script>\n" if script else "")
        + "</body>\n</html>\n"
    )


def write_page(path: Path, title: str, html: str, script: bool = True) -> Path:
    """Write ``page(...)`` in one step. Half characters (lone surrogates: a file name that is not UTF-8, a damaged caption) show as ``?``."""
    write_whole(path, page(title, html, script).encode("utf-8", "replace"))
    return path


def section(name: str, title: str, html: str) -> Html:
    """A titled part of the page that the navigation can point to."""
    return Html(f'<section id="{esc(name)}">\n<h2>{esc(title)}</h2>\n{html}\n</section>\n')


def navigation(entries: Iterable[tuple[str, str]]) -> Html:
    """Links to sections, (name, title) each."""
    return Html("<nav>" + "".join(f'<a href="#{esc(name)}">{esc(title)}</a>' for name, title in entries) + "</nav>\n")


def facts(values: Mapping[str, object]) -> Html:
    """Short named facts side by side."""
    return Html(
        '<dl class="facts">'
        + "".join(f"<div><dt>{esc(name)}</dt><dd>{esc(value)}</dd></div>" for name, value in values.items())
        + "</dl>\n"
    )


def note(text: object, warn: bool = False) -> Html:
    """A side note; ``warn`` for what the reader should not miss."""
    return Html(f'<p class="note{" warn" if warn else ""}">{esc(text)}</p>\n')


def table(caption: str, head: Sequence[object], rows: Iterable[Sequence[object]], numeric: Iterable[int] = ()) -> Html:
    """A table. The first cell of a row names it; the columns listed in ``numeric`` are set flush right.

    Args:
        caption: what it holds, for those who cannot see what stands around it.
        head: of each column; an empty one where its cells speak for themselves.
    """
    right = set(numeric)
    over = "".join(heading(cell, numeric=i in right) for i, cell in enumerate(head))
    body = ""
    for name, *cells in rows:
        shown = "".join(f"<td{_kind('n' if i in right else '')}>{esc(cell)}</td>" for i, cell in enumerate(cells, 1))
        body += f"<tr>{row_heading(name)}{shown}</tr>"
    return table_frame(caption, f"<tr>{over}</tr>", body)


def table_frame(caption: str, head: str, body: str) -> Html:
    """A table of ready rows, in a box that scrolls sideways where it does not fit."""
    return Html(
        f'<div class="scroll"><table><caption>{esc(caption)}</caption><thead>{head}</thead><tbody>{body}</tbody></table></div>\n'
    )


def heading(text: object, numeric: bool = False, span: int = 1, kind: str = "", about: str = "") -> Html:
    """The head of a column, or of ``span`` columns; an empty cell for an empty text. ``about`` stands under the mouse."""
    if not text:
        return Html(f"<td{_spans(span)}></td>")
    scope = "colgroup" if span > 1 else "col"
    title = f' title="{esc(about)}"' if about else ""
    return Html(f'<th scope="{scope}"{_kind(f"{kind} n" if numeric else kind)}{_spans(span)}{title}>{esc(text)}</th>')


def row_heading(text: object, kind: str = "", span: int = 1) -> Html:
    """The name of a row, in its first cell; with ``span`` that of the rows below it, as wide as the table."""
    return Html(f'<th scope="{"rowgroup" if span > 1 else "row"}"{_kind(kind)}{_spans(span)}>{esc(text)}</th>')


def path_text(path: object) -> Html:
    """A path, which may go on in the next line after a slash."""
    return Html(f'<span class="mono">{esc(path).replace("/", "/<wbr>")}</span>')


def _kind(kind: str) -> str:
    return f' class="{kind.strip()}"' if kind.strip() else ""


def _spans(span: int) -> str:
    return f' colspan="{span}"' if span > 1 else ""


def fold(title: str, html: str) -> Html:
    """A part that opens on a click."""
    return Html(f"<details><summary>{esc(title)}</summary>{html}</details>\n")
