"""Which column of a table means what, guessed from usual names or told by the user, and what the numbers of a box mean. Used by `custom.py`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rb.core.boxes import EDGE_TOLERANCE, xywh_to_xyxy

FIELDS = ("file", "caption", "box", "object", "split")
XYXY, XYWH = "xyxy", "xywh"  # corners; or one corner and the size
PIXELS, SHARES = "pixels", "shares"  # of the image's width and height

_NAMES: dict[str, tuple[str, ...]] = {
    "file": ("file_name", "filename", "file", "image_path", "image", "img", "cloud", "points", "filepath", "path"),
    "caption": ("caption", "captions", "text", "description", "sentence", "sentences", "phrase", "expression"),
    "box": ("box", "bbox", "bounding_box", "bbox_xyxy", "bbox_xywh", "box_xyxy", "box_xywh"),
    "object": ("object_id", "region_id", "ref_id", "ann_id", "id"),
    "split": ("split",),
}
# Boxes in a column for each number, with what the names say about them.
_SPREAD: tuple[tuple[tuple[str, ...], str], ...] = (
    (("x1", "y1", "z1", "x2", "y2", "z2"), XYXY),
    (("xmin", "ymin", "zmin", "xmax", "ymax", "zmax"), XYXY),
    (("x_min", "y_min", "z_min", "x_max", "y_max", "z_max"), XYXY),
    (("x1", "y1", "x2", "y2"), XYXY),
    (("xmin", "ymin", "xmax", "ymax"), XYXY),
    (("x_min", "y_min", "x_max", "y_max"), XYXY),
    (("left", "top", "right", "bottom"), XYXY),
    (("x", "y", "w", "h"), XYWH),
    (("x", "y", "width", "height"), XYWH),
    (("left", "top", "width", "height"), XYWH),
)
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_LONGEST_BOX_TEXT = 400


@dataclass(frozen=True)
class Columns:
    """The columns of a table, by meaning.

    Attributes:
        box: one column with all numbers, or a column for each; empty where the table has no boxes.
        form: ``xyxy`` or ``xywh``, where the names say it; else none.
    """

    file: str
    caption: str
    box: tuple[str, ...] = ()
    form: str | None = None
    object: str | None = None
    split: str | None = None

    def __str__(self) -> str:
        parts = [("file", self.file), ("caption", self.caption), ("box", ",".join(self.box)), ("object", self.object)]
        return ", ".join(f"{name}={value}" for name, value in [*parts, ("split", self.split)] if value)


def find_columns(names: Sequence[str], told: dict[str, str], where: str) -> Columns:
    """The columns of a table.

    Args:
        names: of all columns.
        told: field -> column, by the user; a box may be several, with commas.
        where: the table, for errors.

    Raises:
        ValueError: a column that is not there, or no column for the file or the caption.
    """
    lower = {name.lower().strip(): name for name in names}
    have = ", ".join(names)
    for field, value in told.items():
        lost = [name for name in value.split(",") if name not in names]
        if field not in FIELDS or lost:
            wrong = f"--column {field}={value}"
            why = (
                f"{lost[0]!r} is no column of {where}: {have}" if field in FIELDS else f"not one of {', '.join(FIELDS)}"
            )
            raise ValueError(f"{wrong}: {why}")
    found = {
        field: told.get(field) or next((lower[name] for name in usual if name in lower), None)
        for field, usual in _NAMES.items()
    }
    for field in ("file", "caption"):
        if found[field] is None:
            raise ValueError(f"{where}: which column holds the {field}? Say --column {field}=NAME; there are {have}")
    file, caption, box = found["file"], found["caption"], found["box"]
    assert file is not None
    assert caption is not None
    columns = Columns(file, caption, object=found["object"], split=found["split"])
    if "box" in told:
        names_told = tuple(told["box"].split(","))
        return replace(columns, box=names_told, form=_form_of(names_told))
    spread = next(((group, form) for group, form in _SPREAD if all(name in lower for name in group)), None)
    if box is not None:
        return replace(columns, box=(box,), form=_form_of((box,)))
    if spread is not None:
        return replace(columns, box=tuple(lower[name] for name in spread[0]), form=spread[1])
    return columns


def _form_of(names: tuple[str, ...]) -> str | None:
    lower = tuple(name.lower() for name in names)
    if len(names) == 1:
        return next((form for form in (XYXY, XYWH) if lower[0].endswith(form)), None)
    return next((form for group, form in _SPREAD if group == lower), None)


def box_of(row: dict[str, Any], columns: Columns) -> list[float]:
    """A row's box: 4 or 6 finite numbers. ``ValueError`` says what is there instead."""
    value: Any = [row.get(name) for name in columns.box] if len(columns.box) > 1 else row.get(columns.box[0])
    if isinstance(value, str) and len(value) <= _LONGEST_BOX_TEXT:
        value = _NUMBER.findall(value)
    try:
        numbers = [float(number) for number in value]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if len(numbers) not in (4, 6) or not all(map(math.isfinite, numbers)):
        raise ValueError(f"box {value!r:.80} is not 4 numbers (6 for a cloud)")
    return numbers


def meaning_of_boxes(boxes: Sequence[tuple[list[float], tuple[int, int]]]) -> tuple[str, set[str]]:
    """The unit of a set's image boxes, and which forms all of them allow.

    Numbers that are all within 0 and 1 are shares of the image's size, since boxes of less than a pixel are none. Four numbers can only be
    corners if the second corner lies beyond the first, and only be a corner and a size if that stays within the image.

    Args:
        boxes: four numbers each, with the image's (width, height).
    """
    unit = PIXELS if any(max(map(abs, box)) > 1 for box, _ in boxes) else SHARES
    forms = {XYXY, XYWH}
    for box, size in boxes:
        forms &= forms_of_box(box, size, unit)
    return unit, forms


def forms_of_box(box: Sequence[float], size: tuple[int, int], unit: str) -> set[str]:
    """Which forms four numbers of an image of this (width, height) allow."""
    a, b, c, d = box
    width, height = size if unit == PIXELS else (1, 1)
    over = EDGE_TOLERANCE if unit == PIXELS else EDGE_TOLERANCE / min(size)
    forms = set()
    if c > a and d > b:
        forms.add(XYXY)
    if a + c <= width + over and b + d <= height + over:
        forms.add(XYWH)
    return forms


def in_pixels(box: Sequence[float], form: str, unit: str, size: tuple[int, int]) -> list[float]:
    """A box as x1, y1, x2, y2 in pixels."""
    corners = xywh_to_xyxy(box) if form == XYWH else [float(value) for value in box]
    return corners if unit == PIXELS else [value * side for value, side in zip(corners, (*size, *size), strict=True)]
