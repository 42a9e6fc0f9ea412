"""Large JSON files item by item: a top-level list, or the lists of a top-level object. Memory stays small, whatever the file claims.

The rules are those of ``strict_json.parse_foreign`` (odd values pass, whole numbers beyond 64 bits become floats, an item has at most 64 levels,
only ``fields`` of objects are kept) and of ``text_encoding.py``. One item is held at a time, as text of at most ``most`` letters.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

from rb.core.stand_ins import stand_in
from rb.core.strict_json import MAX_DEPTH, FormatError, check_depth, foreign_decoder, parse_foreign
from rb.core.text_encoding import byte_order_mark, decode

MAX_ITEM = 2 << 20  # letters; nested empty lists become some 50 times as many bytes: one item takes 100 MB at most
MAX_OTHERS = 1 << 16  # letters of all values beside the lists that are handed out
_HEAD = 1024  # bytes that show a byte-order mark, or another kind of file
_PIECE = 1 << 18  # bytes read at a time
_LONGEST_WORD = 16  # "-Infinity", "\ud83d\ude00": so near to the end of what is read, an error may only be a cut
_SPACES = ("", " ", "\t", "\n", "\r")
_SPACE = re.compile(r"[ \t\n\r]*")
_NEXT = re.compile(r"[ \t\n\r]*([,\]}:]?)[ \t\n\r]*")  # behind a value
_BRACKET = re.compile(r'["\[\]{}]')
_QUOTED = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
_WORD = re.compile(r'[^ \t\n\r,:"\[\]{}]*')

Fields = frozenset[str] | None
Scan = Callable[[str, int], tuple[Any, int]]


def stream_list(
    path: Path, fields: Fields, notes: Counter[str], *, most: int = MAX_ITEM, remedy: str = "download it again"
) -> Iterator[Any]:
    """The items of a file that is one list, in order. They are of any kind, as with ``parse_foreign``: who reads them checks them.

    Args:
        fields: of objects, keep only these; none: all.
        notes: ``notes[ENCODING_NOTE]`` grows by the bytes that are not UTF-8.
        most: letters that one item may have.
        remedy: what the error of a damaged file advises.

    Raises:
        ValueError: no JSON, another file, an item too large; it names file, item and remedy. What was handed out before is sound.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        text = _Text(file, path, notes, most, remedy)
        text.enter("[", "a list")
        yield from text.items(fields, "the list")
        text.end()


def stream_lists(
    path: Path,
    lists: Mapping[str, Fields],
    notes: Counter[str],
    *,
    others: dict[str, Any] | None = None,
    most: int = MAX_ITEM,
    remedy: str = "download it again",
) -> Iterator[tuple[str, Any]]:
    """(name of the list, item) of a file that is one object which has the lists ``lists``, in the order of the file.

    Args:
        lists: name of a list -> which fields of its objects to keep. All must be there. A list that comes twice is read twice.
        others: is filled with the object's other values as they come, up to 65,536 letters of them; larger ones are passed over.

    The rest is as of ``stream_list``.
    """
    with path.open("rb") as file:
        text = _Text(file, path, notes, most, remedy)
        text.enter("{", f"an object with {', '.join(map(repr, lists))}")
        found, room = set(), MAX_OTHERS
        for name in text.names():
            if name in lists:
                found.add(name)
                text.enter("[", "a list")
                for item in text.items(lists[name], repr(name)):
                    yield name, item
            else:
                short = text.pass_over(0 if others is None else room)
                if others is not None and short:
                    others[name] = text.parsed(short)
                    room -= len(short)
        text.end()
    for name in lists:
        if name not in found:
            raise FormatError(f"{path}: field {name!r} is missing; this is another file than the data set ships")


class _Text:
    """A window on the text of a file. ``at`` is how far it is read; ``place`` is what stands there, for errors."""

    def __init__(self, file: BufferedReader, path: Path, notes: Counter[str], most: int, remedy: str) -> None:
        self.file, self.path, self.notes, self.most, self.remedy = file, path, notes, most, remedy
        head = file.peek(_HEAD)
        other = stand_in(head)
        if other:
            raise FormatError(f"{path}: {other}")
        mark, self.encoding = byte_order_mark(head)
        file.read(mark)
        self.bytes, self.ended = b"", False
        self.text, self.at, self.place = "", 0, "the file"

    def more(self) -> bool:
        """Read on; false at the end. As much again as is held, so that an item tried again and again costs twice its time at most."""
        if self.ended:
            return False
        held = len(self.text) - self.at
        piece = self.file.read(max(_PIECE, min(held, self.most - held)))
        data, self.ended = self.bytes + piece, not piece
        text, used = decode(data, self.encoding, str(self.path), self.notes, final=self.ended)
        self.bytes = data[used:]
        self.text, self.at = self.text[self.at :] + text, 0
        return True

    def wrong(self, problem: str) -> FormatError:
        """The error of a damaged file."""
        return FormatError(f"{self.path}: {self.place}: not valid JSON ({problem}); {self.remedy}")

    def peek(self) -> str:
        """Go past spaces; the letter behind them, which is not passed. Empty at the end of the file."""
        while True:
            space = _SPACE.match(self.text, self.at)
            assert space is not None
            self.at = space.end()
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def enter(self, bracket: str, needed: str) -> None:
        """Go past ``bracket``, with which the value ``place`` begins."""
        found = self.peek()
        if not found:
            raise self.wrong("the file ends there")
        if found != bracket:
            raise FormatError(
                f"{self.path}: {self.place}: must be {needed}, but begins with {found!a}; this is another file than the data set ships"
            )
        self.at += 1

    def end(self) -> None:
        """Nothing may follow."""
        self.place = "behind its end"
        if self.peek():
            raise self.wrong("more text follows")

    def items(self, fields: Fields, name: str) -> Iterator[Any]:
        """The items of a list that was entered, to behind its end."""
        scan, number, mark = foreign_decoder(fields).raw_decode, 0, ","
        if self.peek() == "]":
            self.at += 1
            return
        while mark == ",":
            number += 1
            self.place = f"item {number} of {name}"
            value, mark = self.value(scan, ",]")
            yield value

    def names(self) -> Iterator[str]:
        """The names of the fields of an object that was entered, to behind its end. Each field is to be read before the next name."""
        scan, mark = foreign_decoder().raw_decode, ","
        self.place = "its first field"
        if self.peek() == "}":
            self.at += 1
            return
        while mark == ",":
            if self.peek() != '"':
                raise self.wrong("the name of a field is expected")
            name = self.value(scan, ":")[0]
            self.place = f"field {name[:80]!r}"
            yield name
            self.place = f"behind field {name[:80]!r}"
            mark = self.peek()
            if mark not in (",", "}"):
                raise self.wrong("a comma or } is expected")
            self.at += 1

    def value(self, scan: Scan, marks: str) -> tuple[Any, str]:
        """The next value, and which of ``marks`` follows it, which is passed too.

        A value counts once its mark is seen: before, a number may go on in what is not read yet.
        """
        while True:
            text, begin = self.text, self.at
            wrong_at, problem = 0, ""
            try:
                value, end = scan(text, begin)
                behind = _NEXT.match(text, end)
                assert behind is not None
                if behind[1] and behind[1] in marks:
                    break
                wrong_at, problem = behind.end(1), f"{' or '.join(marks)} is expected behind it"
            except RecursionError:
                problem = f"more than {MAX_DEPTH} lists and objects within each other"
            except json.JSONDecodeError as error:
                wrong_at, problem = error.pos, error.msg
            self._read_on(wrong_at, problem)
        if end - begin > self.most:
            raise self._too_large()
        if end - begin > MAX_DEPTH and text.count("[", begin, end) + text.count("{", begin, end) > MAX_DEPTH:
            try:
                check_depth(value)
            except ValueError as error:
                raise self.wrong(str(error)) from None
        self.at = behind.end()
        return value, behind[1]

    def _read_on(self, wrong_at: int, problem: str) -> None:
        """After ``problem`` with the value at ``at``: go past spaces, or read on where it may only be cut; else raise."""
        if self.text[self.at : self.at + 1] in _SPACES:
            if not self.peek():
                raise self.wrong("the file ends there")
        elif wrong_at < len(self.text) - _LONGEST_WORD and not problem.startswith("Unterminated"):
            raise self.wrong(problem)
        elif len(self.text) - self.at > self.most:
            raise self._too_large()
        elif not self.more():
            raise self.wrong(problem)

    def _too_large(self) -> FormatError:
        return FormatError(
            f"{self.path}: {self.place}: more than {self.most:,} letters; this is another file than the data set ships"
        )

    def pass_over(self, room: int) -> str:
        """Go past the next value, of any size, without building it; its text if that has at most ``room`` letters, else nothing."""
        pieces, size, depth, quoted, done = [], 0, 0, False, False
        word = self.peek() not in ('"', "[", "{")
        while not done:
            text, at = self.text, self.at
            while at < len(text) and not done:
                if word:
                    at = _end(_WORD, text, at)
                    done = at < len(text)
                    break
                if quoted:
                    at = _end(_QUOTED, text, at)
                    if text[at : at + 1] != '"':  # cut: the text, or before the letter behind a backslash
                        break
                    at, quoted, done = at + 1, False, depth == 0
                    continue
                found = _BRACKET.search(text, at)
                if found is None:
                    at = len(text)
                    break
                at = found.end()
                if found[0] == '"':
                    quoted = True
                else:
                    depth += 1 if found[0] in "[{" else -1
                    done = depth == 0
            size += at - self.at
            if size <= room:
                pieces.append(text[self.at : at])
            self.at = at
            if not done and not self.more():
                raise self.wrong("the file ends there")
        return "".join(pieces) if size <= room else ""

    def parsed(self, short: str) -> Any:
        """The value that ``pass_over`` handed out."""
        return parse_foreign(short, f"{self.path}: {self.place}", None, self.remedy)


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    assert found is not None
    return found.end()
