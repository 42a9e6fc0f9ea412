"""Cap3D's captions: ``uid,caption`` lines without a header, captions with commas in quotes. Used by `objaverse.py`.

A quote that is never closed would swallow the lines behind it without a word; here it costs its own line only, and that one is listed.
Whether a line belongs to an open quote is decided by where the quote ends, and by the form of the uids (see ``_last_line``).
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rb.data.prepare.raw_text import read_text

_ROW_START = re.compile(r'\s*"?([A-Za-z0-9_-]{1,64})"?,')  # a row begins like this, and many a line of prose
_LONE_QUOTE = re.compile(r'(?:[^"]|"")*"(?!")')
_MAX_LINES = 50  # of one caption
_QUOTED = re.compile(r'\s*"|[^",]*,"')  # elsewhere a quote is a sign like any other: ``a 12" pipe``


@dataclass
class CaptionTable:
    """Captions of objects, and what of their file is none.

    Attributes:
        captions: uid -> its first caption, in the file's order.
        malformed: (number of the line or item, where it is and what is wrong).
        repeated: (uid, where it is).
        place: what the numbers count, in the singular.
    """

    captions: dict[str, str] = field(default_factory=dict)
    malformed: list[tuple[int, str]] = field(default_factory=list)
    repeated: list[tuple[str, str]] = field(default_factory=list)
    place: str = "line"

    def add(self, uid: str, caption: str, place: str) -> None:
        """A row; of a repeated uid the first caption is kept."""
        if uid in self.captions:
            self.repeated.append((uid, place))
        else:
            self.captions[uid] = caption


def read_captions(file: Path, notes: Counter[str]) -> CaptionTable:
    """All rows of ``file``, read line by line. A comma without quotes belongs to the caption. ``ValueError`` where it has none."""
    table = CaptionTable()
    for number, text in _rows(list(io.StringIO(read_text(file, notes), newline=""))):
        if not text.strip():
            continue
        try:
            cells = next(csv.reader([text]))
        except csv.Error as error:
            table.malformed.append((number, f"{file}, line {number}: not a row of CSV ({error})"))
            continue
        uid = cells[0].strip()
        if len(cells) < 2 or not uid or _open(text):
            table.malformed.append((number, f"{file}, line {number}: not 'uid,caption': {text.strip()!r:.100}"))
        else:
            table.add(uid, ",".join(cells[1:]), f"{file}, line {number}")
    if not table.captions and not table.malformed:
        raise ValueError(f"{file}: holds no row 'uid,caption'")
    return table


def _open(text: str) -> bool:
    return bool(_QUOTED.match(text)) and text.count('"') % 2 == 1


def _rows(lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    """(number of its first line, text) of every row."""
    first = 0
    while first < len(lines):
        last = _last_line(lines, first)
        yield first + 1, "".join(lines[first : last + 1])
        first = last + 1


def _last_line(lines: Sequence[str], first: int) -> int:
    """The last line of the row that begins at ``first``: where its quote is closed, if it is open at the line's end.

    It is never closed, and the row is one line, if a line of the same form of uid comes before the end (a row of the table), or if the quote
    that would close it is followed by anything but a comma or the line's end (it opens another row's caption).
    """
    if not _open(lines[first]):
        return first
    form = _form(lines[first])
    for number in range(first + 1, min(first + _MAX_LINES, len(lines))):
        line = lines[number]
        if form and _form(line) == form:
            break
        end = _LONE_QUOTE.match(line)
        if end:
            return number if re.match(r"\s*(?:,|$)", line[end.end() :]) else first
    return first


def _form(line: str) -> str | None:
    """The form of the uid that ``line`` seems to begin with: a letter or digit a class each; none where it begins with no uid."""
    start = _ROW_START.match(line)
    if start is None:
        return None
    uid = start[1]
    if re.fullmatch("[0-9a-f]{16,}", uid):
        return f"hexadecimal {len(uid)}"
    return re.sub("[0-9]+", "0", re.sub("[A-Za-z]+", "a", uid))
