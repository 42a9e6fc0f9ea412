"""Cap3D's captions: ``uid,caption`` lines without a header, captions with commas in quotes. Used by `objaverse.py`.

A quote that is never closed would swallow the lines behind it without a word; here it costs its own line only, and that one is listed.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rb.data.prepare.raw_text import read_text

# A line that begins like this is a new row, even where the row before has an open quote.
_ROW_START = re.compile(r'"?[A-Za-z0-9_-]{8,64}"?,')
_QUOTED = re.compile(r'\s*"|[^",]*,"')  # elsewhere a quote is a sign like any other: ``a 12" pipe``


@dataclass
class CaptionTable:
    """``captions``: uid -> its first caption, in the file's order. ``malformed``: (line, what is wrong); ``repeated``: (uid, line)."""

    captions: dict[str, str] = field(default_factory=dict)
    malformed: list[tuple[int, str]] = field(default_factory=list)
    repeated: list[tuple[str, int]] = field(default_factory=list)


def read_captions(file: Path, notes: Counter[str]) -> CaptionTable:
    """All rows of ``file``, read line by line. A comma without quotes belongs to the caption."""
    table = CaptionTable()
    for number, text in _rows(io.StringIO(read_text(file, notes), newline="")):
        if not text.strip():
            continue
        try:
            cells = next(csv.reader([text]))
        except csv.Error as error:
            table.malformed.append((number, f"not a row of CSV ({error})"))
            continue
        uid = cells[0].strip()
        if len(cells) < 2 or not uid or _open(text):
            table.malformed.append((number, f"not 'uid,caption': {text.strip()!r:.100}"))
        elif uid in table.captions:
            table.repeated.append((uid, number))
        else:
            table.captions[uid] = ",".join(cells[1:])
    return table


def _open(text: str) -> bool:
    return bool(_QUOTED.match(text)) and text.count('"') % 2 == 1


def _rows(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """(number of its first line, text) of every row; a row continues while a quote is open, but not past the start of another row."""
    pending, start = "", 0
    for number, line in enumerate(lines, 1):
        if pending and _ROW_START.match(line):
            yield start, pending
            pending = ""
        if not pending:
            start = number
        pending += line
        if not _open(pending):
            yield start, pending
            pending = ""
    if pending:
        yield start, pending
