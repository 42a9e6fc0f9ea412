"""nocaps' validation set (``nocaps_val_4500_captions.json`` and the images of Open Images) to shards of whole images with their domain.

Source ids are ``nocaps/<image id>``, the number by which the data set's own scores know an image. The domain (``in-domain``, ``near-domain``,
``out-domain``) stands in the record. The captions of the test set are not published.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from rb.core.json_stream import stream_lists
from rb.core.modality import IMAGE
from rb.data.prepare.common import (
    Conversion,
    Reason,
    add_exif,
    find_raw,
    is_id,
    require_raw,
)
from rb.data.prepare.image_sets import CaptionedImage, ImageFile, write_captions
from rb.data.prepare.plan import Plan, RawSet

NAME = "nocaps"
SPLIT = "val"
LAYOUT = """  RAW/nocaps_val_4500_captions.json     (or in RAW/annotations/, or told by --annotations FILE)
  RAW/images/0013ea2087020901.jpg ...   (or RAW/val/, RAW/validation/, or told by --images DIR)"""
_FILES = ("nocaps_val_4500_captions.json", "annotations/nocaps_val_4500_captions.json")
_FOLDERS = ("images", "val", "validation")
_LISTS = {
    "images": frozenset({"id", "file_name", "domain", "open_images_id"}),
    "annotations": frozenset({"image_id", "caption"}),
}
DOMAINS = ("in-domain", "near-domain", "out-domain")


def open_raw(raw: Path, annotations: Path | None = None, images: Path | None = None, exif: str | None = None) -> RawSet:
    """The file of the validation set. An item is an image.

    Args:
        annotations: the annotation file, if not in ``raw``.
        images: the folder of the image files, if not in ``raw``.
        exif: as of `rb.data.shard_writer.ShardWriter`.

    Raises:
        ValueError: a raw file or folder is missing or another than expected.
    """
    file = find_raw(raw, _FILES, LAYOUT) if annotations is None else require_raw(annotations, LAYOUT)
    root = find_raw(raw, _FOLDERS, LAYOUT) if images is None else require_raw(images, LAYOUT)

    def plan(split: str) -> Plan:
        if split != SPLIT:
            raise ValueError(f"split {split!r}: only {SPLIT!r} has published captions; leave --split out")
        notes: Counter[str] = Counter()
        listed, captions = _read(file, notes)
        return Plan(
            NAME,
            IMAGE,
            SPLIT,
            "images",
            collect=lambda conversion: _collect(conversion, listed, captions, root),
            read=lambda item: item.file.read(exif),
            write=lambda conversion, item, image: write_captions(conversion, item, image, NAME, SPLIT),
            notes=notes,
            exif=exif,
        )

    return RawSet((SPLIT,), [file], plan)


def _read(file: Path, notes: Counter[str]) -> tuple[list[Any], dict[int, list[object]]]:
    """The images as they are listed, and the captions by the number of their image."""
    listed: list[Any] = []
    captions: dict[int, list[object]] = {}
    for name, item in stream_lists(file, _LISTS, notes):
        if name == "images":
            listed.append(item)
        elif isinstance(item, dict) and is_id(item.get("image_id")):
            captions.setdefault(item["image_id"], []).append(item.get("caption"))
        else:
            notes["annotations without the number of an image, passed over"] += 1
    if not any(isinstance(item, dict) and "open_images_id" in item for item in listed):
        raise ValueError(f"{file}: no image has an 'open_images_id'; this is another file than nocaps ships")
    return listed, captions


def _collect(
    conversion: Conversion, listed: list[Any], captions: dict[int, list[object]], root: Path
) -> list[CaptionedImage]:
    items = []
    for image in listed:
        number: Any = image.get("id") if isinstance(image, dict) else None
        if not is_id(number):
            conversion.tally.read += 1
            conversion.reject(
                f"{NAME}/{number}", Reason.UNKNOWN_IMAGE, f"id must be a whole number, got {number!r:.80}"
            )
            continue
        domain = image.get("domain")
        if domain not in DOMAINS:
            conversion.tally.notes["images without a domain"] += 1
            domain = None
        file = ImageFile(f"{NAME}/{number}", root, (image.get("file_name"),))
        items.append(CaptionedImage(file, captions.pop(number, []), domain))
    for number in captions:
        conversion.tally.read += 1
        conversion.reject(
            f"{NAME}/{number}", Reason.UNKNOWN_IMAGE, "its captions stand in 'annotations', but it is not in 'images'"
        )
    return items


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``rb prepare nocaps``."""
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="the annotation file (default: found in RAW)")
    parser.add_argument("--images", type=Path, help="the folder of the image files (default: found in RAW)")
    add_exif(parser)
