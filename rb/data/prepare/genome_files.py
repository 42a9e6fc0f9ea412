"""Visual Genome's annotation files, streamed: regions gathered by image, and what is known of the images. Used by `visual_genome.py`.

Versions 1.0 and 1.2 of ``region_descriptions.json`` differ in names of fields (``id`` and ``image``; ``region_id`` and ``image_id``). GRiT's and
GLaMM's files are in COCO's form, with a ``caption`` in every annotation.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from rb.core.json_stream import stream_list, stream_lists
from rb.core.strict_json import dumps, parse_foreign
from rb.data.prepare.common import Conversion, Reason, is_id

_DESCRIBED = frozenset({"id", "image_id", "regions", "region_id", "x", "y", "width", "height", "phrase"})
_IMAGE = frozenset({"id", "file_name", "width", "height"})
_ANNOTATION = frozenset({"id", "image_id", "bbox", "caption"})
_PHOTO = frozenset({"image_id", "id", "width", "height", "coco_id"})


class RawRegion(NamedTuple):
    """A region as a file has it. ``identity``: its number, or how it is shown; ``box``: x, y, width, height, or none where they are no numbers."""

    identity: int | str
    box: list[float] | None
    phrase: str


@dataclass
class ImageRegions:
    """The regions of an image, as JSON text: 5.4 million objects would take ten times the memory.

    Attributes:
        size: (width, height) of the image in pixels; none where the file does not say.
    """

    size: tuple[int, int] | None = None
    count: int = 0
    rows: bytearray = field(default_factory=bytearray)

    def add(self, identity: object, box: object, phrase: object) -> None:
        """One region, of any values."""
        good = (
            isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) and math.isfinite(v) for v in box)
        )
        number = identity if is_id(identity) else f"{identity!r:.80}"
        row = dumps([number, box if good else None, phrase if isinstance(phrase, str) else ""])
        self.rows += (b"," if self.count else b"") + row.encode()
        self.count += 1

    def join(self, other: ImageRegions) -> None:
        """The regions of ``other``, too."""
        self.rows += (b"," if self.count and other.count else b"") + other.rows
        self.count += other.count

    def regions(self) -> list[RawRegion]:
        """What was added."""
        return [RawRegion(*row) for row in parse_foreign(f"[{self.rows.decode()}]", "gathered regions")]


Gathered = dict[int, ImageRegions]  # by the image's number, in the order of the file


def read_descriptions(conversion: Conversion, path: Path, wanted: Collection[int] | None) -> Gathered:
    """The regions of ``region_descriptions.json``, of the images ``wanted`` (none: of all). Entries without a number are rejected."""
    found: Gathered = {}
    for entry in stream_list(path, _DESCRIBED, conversion.tally.notes):
        number = entry.get("id", entry.get("image_id")) if isinstance(entry, dict) else None
        regions = entry.get("regions") if isinstance(entry, dict) else None
        if not is_id(number) or not isinstance(regions, list):
            _reject(conversion, Reason.MALFORMED_ROW, f"{path.name}: {entry!r:.200} is no image with regions")
        elif wanted is None or number in wanted:
            image = found.setdefault(number, ImageRegions())
            for region in regions:
                row = region if isinstance(region, dict) else {}
                box = [row.get(name) for name in ("x", "y", "width", "height")]
                image.add(row.get("region_id", row.get("id")), box, row.get("phrase"))
    return found


def read_coco_style(conversion: Conversion, path: Path) -> Gathered:
    """The regions of a file in COCO's form. An image's number is its file's name (``2342728.jpg``), else its id."""
    entries: dict[int, tuple[int, tuple[int, int] | None]] = {}  # id -> number, size
    by_id: Gathered = {}
    for kind, item in stream_lists(path, {"images": _IMAGE, "annotations": _ANNOTATION}, conversion.tally.notes):
        identity = item.get("id" if kind == "images" else "image_id") if isinstance(item, dict) else None
        if not is_id(identity):
            _reject(conversion, Reason.MALFORMED_ROW, f"{path.name}: {kind}: {item!r:.200} has no number of an image")
        elif kind == "images":
            name = PurePosixPath(str(item.get("file_name"))).stem
            number = int(name) if name.isascii() and name.isdecimal() and len(name) <= 18 else identity
            entries[identity] = number, _size(item)
        else:
            by_id.setdefault(identity, ImageRegions()).add(item.get("id"), item.get("bbox"), item.get("caption"))
    found: Gathered = {}
    for identity, (number, size) in entries.items():
        image = found.setdefault(number, ImageRegions(size))
        image.join(by_id.pop(identity, ImageRegions()))
    for identity, lost in by_id.items():
        for region in lost.regions():
            detail = f"{path.name}: annotation {region.identity} is of image {identity}, which is not listed"
            _reject(conversion, Reason.UNKNOWN_IMAGE, detail)
    return {number: image for number, image in found.items() if image.count}


class Photo(NamedTuple):
    """A row of ``image_data.json``."""

    source: str
    size: tuple[int, int] | None


def read_photos(path: Path, notes: Counter[str]) -> dict[int, Photo]:
    """Number of an image -> what is known of it. COCO's photos have COCO's source ids, each the first image that names it."""
    found: dict[int, Photo] = {}
    taken: set[int] = set()
    for entry in stream_list(path, _PHOTO, notes):
        row = entry if isinstance(entry, dict) else {}
        number, coco = row.get("image_id", row.get("id")), row.get("coco_id")
        if not is_id(number):
            notes["rows of image_data.json without a number"] += 1
            continue
        source = f"visual_genome/{number}"
        if is_id(coco):
            if coco in taken:
                notes["images whose coco_id an earlier image has"] += 1
            else:
                source = f"coco/{coco}"
                taken.add(coco)
        found[number] = Photo(source, _size(row))
    return found


def _size(row: dict[str, Any]) -> tuple[int, int] | None:
    width, height = row.get("width"), row.get("height")
    return (width, height) if is_id(width) and is_id(height) else None


def _reject(conversion: Conversion, reason: str, detail: str) -> None:
    conversion.tally.read += 1
    conversion.reject("visual_genome", reason, detail)
