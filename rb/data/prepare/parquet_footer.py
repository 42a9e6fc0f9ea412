"""What the footer of a Parquet file says of its parts, read without the library: pyarrow 25 ends the process at some damaged footers.

A footer is a struct of Thrift's compact protocol (Parquet's format: FileMetaData 4 row groups, RowGroup 1 columns, ColumnChunk 3 meta data,
ColumnMetaData 1 type, 3 path, 5 number of values, 6 bytes unpacked). Used by `parquet_files.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MAGIC = b"PAR1"
_MOST_BYTES = 1 << 26  # of a footer
_MOST_LEVELS = 12  # structs and lists within each other; Parquet's own have 7
BYTE_ARRAY = 6  # the physical type of texts
_ROW_GROUPS, _COLUMNS, _META_DATA, _TYPE, _PATH, _VALUES, _BYTES = 4, 1, 3, 1, 3, 5, 6


@dataclass(frozen=True)
class ColumnPart:
    """One column in one row group. ``path``: its names from the outermost, with points between; ``size``: bytes unpacked, as claimed."""

    path: str
    physical_type: int
    values: int
    size: int


def column_parts(path: Path) -> Iterator[ColumnPart]:
    """Every part of a file that the library has opened.

    Raises:
        ValueError: a footer that is damaged.
    """
    with path.open("rb") as file:
        end = file.seek(0, 2)
        file.seek(max(end - 8, 0))
        tail = file.read(8)
        size = int.from_bytes(tail[:4], "little")
        if tail[4:] != _MAGIC or size > min(end - 8, _MOST_BYTES):
            raise ValueError("its footer is damaged or encrypted")
        file.seek(end - 8 - size)
        footer = file.read(size)
    try:
        tree = _Compact(footer).struct(0)
        for group in tree.get(_ROW_GROUPS, ()):
            for column in group[_COLUMNS]:
                about = column[_META_DATA]
                names = ".".join(name.decode("utf-8", "replace") for name in about[_PATH])
                yield ColumnPart(names, int(about[_TYPE]), int(about[_VALUES]), int(about[_BYTES]))
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError("its footer is damaged") from None


class _Compact:
    """Reads values of Thrift's compact protocol; every element takes at least a byte, so that a footer bounds what it can hold."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise IndexError

    def whole(self) -> int:
        number = self.unsigned()
        return (number >> 1) ^ -(number & 1)

    def struct(self, level: int) -> dict[int, Any]:
        """Field number -> value."""
        found: dict[int, Any] = {}
        field = 0
        while head := self.byte():
            field = field + (head >> 4) if head >> 4 else self.whole()
            kind = head & 15
            found[field] = kind == 1 if kind in (1, 2) else self.value(kind, level + 1)
        return found

    def value(self, kind: int, level: int) -> Any:
        if level > _MOST_LEVELS:
            raise IndexError
        if kind in (1, 2, 3):
            return self.byte()
        if kind in (4, 5, 6):
            return self.whole()
        if kind == 12:
            return self.struct(level)
        if kind in (9, 10):
            head = self.byte()
            size = head >> 4 if head >> 4 < 15 else self.unsigned()
            return [self.value(head & 15, level + 1) for _ in range(size)]
        if kind == 11:
            size = self.unsigned()
            kinds = self.byte() if size else 0
            return [(self.value(kinds >> 4, level + 1), self.value(kinds & 15, level + 1)) for _ in range(size)]
        size = 8 if kind == 7 else self.unsigned() if kind == 8 else -1
        if not 0 <= size <= len(self.data) - self.at:
            raise IndexError
        self.at += size
        return self.data[self.at - size : self.at]
