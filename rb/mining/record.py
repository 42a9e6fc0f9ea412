"""The stage files of mining: JSON lines, one line an image, in the order of the input shard. Their one reader and writer.

Every stage reads the file of the stage before and adds its fields. A region that a stage drops stays in the file, with the stage and the reason;
later stages pass it on untouched. So the last file tells the whole history of each region, and counts need no other file. Images that were
rejected (bad bytes) are not in the file; the record of the unit counts them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rb.core import strict_json as strict
from rb.core.strict_json import FormatError, checked, dumps, lines, parse


@dataclass(frozen=True)
class Dropped:
    """Why a region is not wanted: the stage that said so, and its reason as a short fixed phrase."""

    stage: str
    reason: str


@dataclass
class Region:
    """One region of an image; a field is none until its stage has run, or where the stage has nothing to say.

    Attributes:
        id: ``KEY:n``.
        box: x1 y1 x2 y2 in pixels, whole numbers; x2 and y2 are behind the last pixel.
        rle: the mask over the whole image, as COCO's compressed counts.
        area: pixels of the mask.
        predicted_iou, stability: the segmenter's own scores; none of a segmenter without them.
        name: what the captioner calls the region, cut out on white.
        name_logprob: mean log-probability of the name's tokens.
        chunks: noun chunks of the name and of the image's caption that are most alike, in this order.
        similarity: of these two.
        text: the description of the region in its image.
        refined: the description as one compact sentence.
    """

    id: str
    box: list[float]
    rle: str
    area: int
    predicted_iou: float | None = None
    stability: float | None = None
    name: str | None = None
    name_logprob: float | None = None
    chunks: list[str] | None = None
    similarity: float | None = None
    text: str | None = None
    refined: str | None = None
    dropped: Dropped | None = None

    @property
    def caption(self) -> str | None:
        """What training reads: the text of the last stage that wrote one."""
        return self.refined or self.text or self.name

    def drop(self, stage: str, reason: str) -> None:
        """Mark the region as not wanted."""
        assert self.dropped is None, f"{self.id} is dropped already"
        self.dropped = Dropped(stage, reason)


@dataclass
class ImageRecord:
    """One image with its regions.

    Attributes:
        key: unique among the inputs.
        width, height: of the image, in pixels.
        alt: the text that came with the image; none where none did.
        caption: of the whole image, by the captioner.
        proposals: what the segmenter proposed: ``made``, and by reason how many did not become regions.
        look: how the image looks, as 64 hexadecimal digits (``rb/sources/images.py: look_of``); none before stage ``screen``, and of an image
            without a region left.
    """

    key: str
    width: int
    height: int
    alt: str | None = None
    caption: str | None = None
    proposals: dict[str, int] = field(default_factory=dict)
    regions: list[Region] = field(default_factory=list)
    look: str | None = None

    @property
    def kept(self) -> list[Region]:
        """Regions that no stage dropped."""
        return [region for region in self.regions if region.dropped is None]


_LOOK = re.compile(r"[0-9a-f]{64}")
_number = strict.or_none(
    lambda value: None if isinstance(value, int | float) and not isinstance(value, bool) else "must be a number"
)
_text = strict.or_none(strict.text)
_IMAGE: dict[str, strict.Check] = {
    "key": strict.name,
    "width": strict.count,
    "height": strict.count,
    "alt": _text,
    "caption": _text,
    "proposals": strict.counts,
    "look": strict.or_none(
        lambda value: None if isinstance(value, str) and _LOOK.fullmatch(value) else "must be 64 hexadecimal digits"
    ),
    "regions": strict.items,
}
_REGION: dict[str, strict.Check] = {
    "id": strict.name,
    "box": strict.numbers,
    "rle": strict.name,
    "area": strict.count,
    "predicted_iou": _number,
    "stability": _number,
    "name": _text,
    "name_logprob": _number,
    "chunks": strict.or_none(strict.texts),
    "similarity": _number,
    "text": _text,
    "refined": _text,
    "dropped": strict.anything,
}
_DROPPED: dict[str, strict.Check] = {"stage": strict.name, "reason": strict.name}


def write_records(records: Iterable[ImageRecord]) -> bytes:
    """The bytes of a stage file: the same records give the same bytes."""
    return "".join(dumps(asdict(record)) + "\n" for record in records).encode("ascii")


def read_records(path: Path) -> list[ImageRecord]:
    """A stage file, checked in full; ``FormatError`` names file, line and field."""
    return parse_records(path.read_bytes(), str(path))


def parse_records(content: bytes, where: str) -> list[ImageRecord]:
    """``read_records`` of bytes."""
    return [parse_record(line, place) for place, line in lines(content, where)]


def parse_record(line: bytes, where: str) -> ImageRecord:
    """One line of a stage file."""
    return _image(parse(line, where), where)


def _image(raw: Any, where: str) -> ImageRecord:
    fields = dict(checked(raw, where, _IMAGE))
    fields["regions"] = [
        _region(item, f"{where}: regions[{i}]", fields["width"], fields["height"])
        for i, item in enumerate(fields["regions"])
    ]
    return ImageRecord(**fields)


def _region(raw: Any, where: str, width: int, height: int) -> Region:
    fields = dict(checked(raw, where, _REGION))
    box = fields["box"]
    if len(box) != 4 or not (0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height):
        raise FormatError(f"{where}: field 'box' must be x1 y1 x2 y2 within {width} x {height} pixels, got {box}")
    if fields["dropped"] is not None:
        fields["dropped"] = Dropped(**checked(fields["dropped"], f"{where}: dropped", _DROPPED))
    return Region(**fields)
