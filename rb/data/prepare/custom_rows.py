"""The rows of one's own table, by split and file, and what the numbers of their boxes mean. Used by `custom.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rb.data.prepare.columns import (
    PIXELS,
    SHARES,
    XYWH,
    XYXY,
    Columns,
    box_of,
    find_columns,
    forms_of_box,
    meaning_of_boxes,
)
from rb.data.prepare.common import RejectedError, plain_path, safe_path
from rb.data.prepare.custom_records import SPLITS, Item, split_of
from rb.data.prepare.tables import READERS
from rb.sources.pixels import ImageError, size_of_file

_MOST_ODD = 0.1  # share of boxes that may contradict the names of their columns
FORMS = (XYXY, XYWH, f"{XYXY}-{SHARES}", f"{XYWH}-{SHARES}")


@dataclass(frozen=True)
class Request:
    """What is asked for of a table.

    Attributes:
        kind: of the table, a key of ``tables.READERS``.
        media: the folder of images, or of clouds (``clouds``).
        told: field -> column, where the guess is wrong.
        boxes: one of ``FORMS``; none to find out.
        shares: of ``val`` and ``test``, by a hash of the file's name; then a column for the split is not read.
        exif: as of ``ShardWriter``.
    """

    table: Path
    kind: str
    media: Path
    clouds: bool
    told: dict[str, str] = field(default_factory=dict)
    boxes: str | None = None
    shares: dict[str, float] = field(default_factory=dict)
    exif: str | None = None


@dataclass
class Found:
    """What a table holds: per split the files with their items, and the rows that cannot be used."""

    columns: Columns
    splits: dict[str, dict[str, list[Item]]] = field(default_factory=dict)
    bad: list[tuple[str, str]] = field(default_factory=list)
    rows: int = 0


def read_rows(ask: Request, notes: Counter[str]) -> Found:
    """All rows of a table, by split and file."""
    found: Found | None = None
    early: list[tuple[str, str]] = []
    split_of_file: dict[str, str] = {}
    for number, row in READERS[ask.kind](ask.table, notes):
        if isinstance(row, ValueError):
            (early if found is None else found.bad).append((f"row {number}", str(row)))
            continue
        if found is None:
            found = Found(find_columns(list(row), ask.told, str(ask.table)), bad=early)
        columns = found.columns
        try:
            file = row.get(columns.file)
            if not isinstance(file, str) or not file.strip():
                raise ValueError(f"column {columns.file!r} names no file: {file!r:.80}")
            file = plain_path(file.strip())
            box = box_of(row, columns) if columns.box else None
            split = _split(row, columns, file, ask.shares)
            first = split_of_file.setdefault(file, split)
            if first != split:
                raise ValueError(f"{file!a:.100} is of split {first} in an earlier row; a file belongs to one split")
        except ValueError as error:
            found.bad.append((f"row {number}", str(error)))
            continue
        told_id = row.get(columns.object) if columns.object else None
        item = Item(f"row {number}", row.get(columns.caption), box, None if told_id is None else str(told_id))
        found.splits.setdefault(split, {}).setdefault(file, []).append(item)
    if found is None:
        raise ValueError(f"{ask.table}: holds no row that can be read{'; ' + named(early) if early else ''}")
    found.rows = len(found.bad) + sum(len(items) for files in found.splits.values() for items in files.values())
    return found


def _split(row: dict[str, Any], columns: Columns, file: str, shares: dict[str, float]) -> str:
    if columns.split and not shares:
        split = row.get(columns.split)
        if split not in SPLITS:
            raise ValueError(f"split {split!r:.40} is not one of {', '.join(SPLITS)}")
        return str(split)
    return split_of(file, shares)


def meaning(ask: Request, found: Found) -> tuple[str, str]:
    """(form, unit) of all image boxes. ``ValueError`` where the names and numbers allow two."""
    if ask.boxes is not None:
        form, _, share = ask.boxes.partition("-")
        return form, SHARES if share else PIXELS
    if ask.kind == "coco":
        return XYWH, PIXELS
    sized = list(_with_sizes(found, ask.media, ask.exif))
    unit, forms = meaning_of_boxes(sized)
    told = found.columns.form
    odd = sum(told not in forms_of_box(box, size, unit) for box, size in sized) if told else 0
    if told and not forms and odd <= _MOST_ODD * len(sized):  # the names are believed, and those boxes rejected later
        forms = {told}
    if told is not None and told in forms:
        return told, unit
    if told is None and len(forms) == 1:
        return forms.pop(), unit
    column = ",".join(found.columns.box)
    if forms:
        raise ValueError(
            f"{ask.table}: the boxes in {column} can be {XYXY} or {XYWH}; say --boxes with one of {', '.join(FORMS)}"
        )
    raise ValueError(
        f"{ask.table}: the boxes in {column} are neither {XYXY} nor {XYWH}: {_odd(sized, unit)}; correct them, or say --boxes, and rows that do not fit are left out, up to --most-bad SHARE"
    )


def _odd(sized: Sequence[tuple[list[float], tuple[int, int]]], unit: str) -> str:
    """The first box that excludes corners, and the first that excludes a size."""
    shown = []
    for form in (XYXY, XYWH):
        box, size = next((box, size) for box, size in sized if form not in forms_of_box(box, size, unit))
        shown.append(f"{box} of an image of {size[0]} x {size[1]} cannot be {form}")
    return ", ".join(shown) + ("" if unit == PIXELS else " in shares")


def _with_sizes(found: Found, media: Path, exif: str | None) -> Iterator[tuple[list[float], tuple[int, int]]]:
    """Every box with its image's size, from the images' headers; images that cannot be read are rejected later."""
    for files in found.splits.values():
        for file, items in files.items():
            try:
                size = size_of_file(safe_path(media, file), exif)
            except (RejectedError, OSError, ImageError):
                continue
            for item in items:
                if item.box is not None and len(item.box) == 4:
                    yield item.box, size


def named(bad: list[tuple[str, str]]) -> str:
    """The first three bad rows, for an error."""
    return "; ".join(f"{place}: {why}" for place, why in bad[:3])
