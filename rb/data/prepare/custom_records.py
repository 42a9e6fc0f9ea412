"""From the captions and boxes of one file of one's own to its record. Used by `custom.py`, for tables and for tars."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rb.core.modality import IMAGE, IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION
from rb.core.seeding import uniform
from rb.data.formats import ObjectAnnotation, Record
from rb.data.prepare.clouds import check_region
from rb.data.prepare.columns import PIXELS, XYXY, in_pixels
from rb.data.prepare.common import CheckedImage, Conversion, Reason, RejectedError
from rb.data.prepare.image_sets import Region, check_box, cut_to_image

SPLITS = ("train", "val", "test")


@dataclass
class Item:
    """One caption, or several, of a file or of a box in it; ``place``: where it is written, for errors that do not say so."""

    place: str
    caption: object
    box: list[float] | None = None
    object_id: str | None = None


def split_of(file: str, shares: dict[str, float]) -> str:
    """The split that a hash of the file's name, or key, falls into: the same on every machine and whatever else is there."""
    draw, edge = uniform("custom split", file), 0.0
    for split, share in shares.items():
        edge += share
        if draw < edge:
            return split
    return "train"


@dataclass(frozen=True)
class Meaning:
    """What the items are about: clouds or images, the whole or boxes in them, and what the numbers of these mean (`columns.py`)."""

    clouds: bool
    regional: bool
    form: str = XYXY
    unit: str = PIXELS

    @property
    def modality(self) -> str:
        """Which modality the records are of."""
        if self.clouds:
            return POINT_CLOUD_REGION if self.regional else POINT_CLOUD
        return IMAGE_REGION if self.regional else IMAGE

    def box(self, item: Item, content: Any) -> list[float]:
        """An item's box in a record's units, not yet cut to the image. ``RejectedError``: empty, outside, or without points."""
        assert item.box is not None
        if self.clouds:
            check_region(content, item.box, "the row")
            return item.box
        size = (content.width, content.height)
        if len(item.box) != 4:
            raise RejectedError(Reason.BOX_EMPTY, f"box {item.box} of an image must be 4 numbers")
        box = in_pixels(item.box, self.form, self.unit, size)
        check_box(box, size, f"{item.box} ({self.form}, {self.unit})")
        return box


@dataclass(frozen=True)
class Records:
    """One split's items on their way to records.

    Attributes:
        name: of the set, and the first part of source ids.
        where: the table or the tars, for errors.
        bad: what was found to be no item while the annotations were read: place and reason.
        most_bad: with a larger share of bad items the split is not written.
    """

    name: str
    split: str
    meaning: Meaning
    where: str
    out: Path
    bad: list[tuple[str, str]]
    most_bad: float

    def reject_bad(self, conversion: Conversion) -> None:
        """List what is no item."""
        for place, why in self.bad:
            conversion.tally.read += 1
            conversion.reject(place, Reason.MALFORMED_ROW, f"{place}: {why}")

    def write(self, conversion: Conversion, file: str, items: list[Item], content: Any) -> None:
        """One file's record: captions of the whole, or of its regions; items of one object, or of one box, are one region.

        Args:
            content: the image or cloud, or the ``RejectedError`` that reading it raised.
        """
        conversion.tally.read += len(items)
        source = f"{self.name}/{file.replace('#', '_')}"
        if not isinstance(content, RejectedError) and conversion.holds(source):
            content = RejectedError(Reason.DUPLICATE_SOURCE, f"{source} was read already")
        whole: list[str] = []
        regions: dict[str, Region] = {}
        used = texts_used = 0
        for item in items:
            texts = item.caption if isinstance(item.caption, list) else [item.caption]
            try:
                if isinstance(content, RejectedError):
                    raise content
                captions = conversion.captions(source, texts, item.object_id)
                if self.meaning.regional:
                    self._add_region(regions, item, content, captions)
                else:
                    whole.extend(captions)
            except RejectedError as error:
                conversion.reject(
                    file, error.reason, f"{item.place}: {error.detail}".removeprefix(": "), item.object_id
                )
                continue
            used += 1
            texts_used += len(captions)
        if used:
            data, extension, size = _stored(content)
            objects = [
                ObjectAnnotation(
                    key,
                    region.box if self.meaning.clouds else cut_to_image(conversion, region.box, size),
                    region.captions,
                )
                for key, region in regions.items()
            ]
            record = Record(source, self.name, self.split, *size, whole, objects)
            conversion.write(record, data, extension, used, texts_used)

    def finish(self, conversion: Conversion) -> None:
        """``ValueError`` names three of the bad items where there are too many."""
        tally = conversion.tally
        bad = sum(tally.rejected.values())
        if bad > self.most_bad * tally.read:
            raise ValueError(
                f"{self.where}: {bad:,} of {tally.read:,} {tally.unit} of split {self.split!r} cannot be used: "
                f"{'; '.join(conversion.first_details)}; {self.out / self.split} was not written; correct them, or allow more with --most-bad SHARE"
            )

    def _add_region(self, regions: dict[str, Region], item: Item, content: Any, captions: list[str]) -> None:
        if item.object_id is not None and not item.object_id.isprintable():
            raise RejectedError(Reason.MALFORMED_ROW, f"object {item.object_id!a:.80} must not hold control characters")
        box = self.meaning.box(item, content)
        key = item.object_id or ",".join(f"{value:.9g}" for value in box)
        known = regions.setdefault(key, Region(key, box, []))
        if known.box != box:
            raise RejectedError(Reason.MALFORMED_ROW, f"object {key!r} has another box in an earlier row")
        known.captions.extend(captions)


def _stored(content: Any) -> tuple[bytes, str, tuple[int, int]]:
    """(bytes, extension, size) of an image or a cloud as a shard holds it."""
    from rb.sources.points import EXTENSION, encode_points

    if isinstance(content, CheckedImage):
        return content.data, content.extension, (content.width, content.height)
    return encode_points(content), EXTENSION, (0, 0)


def first_notes(notes: Counter[str], first: bool) -> Counter[str]:
    """What was counted while the annotations were read, listed once, with the first split."""
    return notes.copy() if first else Counter()
