"""What all converters of images share: whole images with captions, and images with captioned regions, from file to record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rb.core.boxes import EDGE_TOLERANCE, clip_xyxy, image_box_problem
from rb.data.formats import ObjectAnnotation, Record
from rb.data.prepare.common import CheckedImage, Conversion, Reason, RejectedError, read_image, safe_path

CUT_NOTE = f"boxes cut to the image ({EDGE_TOLERANCE:g} px at most)"


@dataclass(frozen=True)
class ImageFile:
    """An image of a data set: its source id, and its file ``root/parts``, the parts from an untrusted file.

    Attributes:
        size: (width, height) in pixels that the annotations say; an image of another size is rejected. None where they say nothing.
    """

    source: str
    root: Path
    parts: tuple[object, ...]
    size: tuple[int, int] | None = None

    def path(self) -> Path:
        """Where the file is. ``RejectedError``: outside of ``root``."""
        return safe_path(self.root, *self.parts)

    def read(self, exif: str | None) -> CheckedImage:
        """The image. ``RejectedError``: missing, unreadable, of another size."""
        image = read_image(self.path(), exif)
        if self.size is not None and (image.width, image.height) != self.size:
            raise RejectedError(
                Reason.IMAGE_SIZE_MISMATCH,
                f"the annotations say {self.size[0]} x {self.size[1]}, the image has {image.width} x {image.height}",
            )
        return image


@dataclass
class CaptionedImage:
    """One item of a set of whole images. ``domain``: as of `rb.data.formats.Record`."""

    file: ImageFile
    captions: Sequence[object]
    domain: str | None = None


@dataclass
class Region:
    """A region with everything said of it. ``box``: x1, y1, x2, y2 in pixels, not yet cut to the image. ``count``: items of the tally in it."""

    object_id: str
    box: list[float]
    captions: list[str]
    count: int = 1


@dataclass
class RegionImage:
    """One item of a set of regions. ``captions``: of the whole image, where the data set has them."""

    file: ImageFile
    regions: list[Region]
    captions: list[str] = field(default_factory=list)


def write_captions(
    conversion: Conversion, item: CaptionedImage, image: CheckedImage | RejectedError, dataset: str, split: str
) -> None:
    """One image with its captions, or rejected; it counts as one."""
    conversion.tally.read += 1
    source = item.file.source
    try:
        if conversion.holds(source):
            raise RejectedError(Reason.DUPLICATE_SOURCE, f"{source} comes twice; the first is kept")
        if isinstance(image, RejectedError):
            raise image
        captions = conversion.captions(source, item.captions)
    except RejectedError as error:
        conversion.reject(source, error.reason, error.detail)
        return
    record = Record(source, dataset, split, image.width, image.height, captions, domain=item.domain)
    conversion.write(record, image.data, image.extension, 1, len(captions))


def four_numbers(value: object, what: str) -> list[float]:
    """``value`` if it is a list of four numbers; else ``RejectedError``."""
    if not (isinstance(value, list) and len(value) == 4 and all(type(v) in (int, float) for v in value)):
        raise RejectedError(Reason.BOX_EMPTY, f"{what} must be four numbers, got {value!a:.80}")
    return value


def check_box(box: list[float], size: tuple[float, float], what: str) -> None:
    """``RejectedError`` where ``box`` is empty or outside an image of this size by more than the tolerance of `rb.core.boxes`."""
    problem = image_box_problem(box, *size)
    if problem:
        raise RejectedError(problem, f"{what}: box {box} in an image of {size[0]} x {size[1]}")


def cut_to_image(conversion: Conversion, box: list[float], size: tuple[float, float]) -> list[float]:
    """``box``, checked by `check_box`, within an image of this size; boxes that this changes are counted."""
    cut = clip_xyxy(box, *size)
    conversion.tally.notes[CUT_NOTE] += cut != box
    return cut


def write_regions(
    conversion: Conversion, item: RegionImage, image: CheckedImage | RejectedError, dataset: str, split: str
) -> None:
    """One image with its regions, or all of them rejected for the image's sake. Their items were counted as read when they were collected."""
    source = item.file.source
    objects, used = [], 0
    for region in item.regions:
        try:
            if isinstance(image, RejectedError):
                raise image
            size = (image.width, image.height)
            check_box(region.box, size, f"object {region.object_id}")
        except RejectedError as error:
            for _ in range(region.count):
                conversion.reject(source, error.reason, error.detail, region.object_id)
            continue
        box = cut_to_image(conversion, region.box, size)
        objects.append(ObjectAnnotation(region.object_id, box, region.captions))
        used += region.count
    if isinstance(image, RejectedError) or not objects:
        return
    record = Record(source, dataset, split, image.width, image.height, item.captions, objects)
    if conversion.write(record, image.data, image.extension, used, sum(len(one.captions) for one in objects)):
        conversion.tally.notes["images"] += 1
        conversion.tally.notes["objects"] += len(objects)
