"""COCO captions in Karpathy's split (``dataset_coco.json`` and the JPEG files) to shards of whole images. Knows no boxes.

Source ids are ``coco/<image id>``, the same as RefCOCO's, so that one image is one source in both.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from rb.core.modality import IMAGE
from rb.data.prepare.common import (
    Conversion,
    Reason,
    RejectedError,
    add_exif,
    is_id,
    objects_of,
    read_json,
    require_raw,
    safe_path,
)
from rb.data.prepare.image_sets import CaptionedImage, ImageFile, write_captions
from rb.data.prepare.plan import Plan, RawSet

NAME = "coco"
SPLITS = ("train", "val", "test")
LAYOUT = """  RAW/dataset_coco.json        Karpathy's file
  RAW/train2014/COCO_train2014_000000000009.jpg ...
  RAW/val2014/COCO_val2014_000000000042.jpg ...   (or --images DIR, the folder that holds train2014 and val2014)"""
_FIELDS = frozenset({"images", "filepath", "filename", "cocoid", "split", "sentences", "raw"})


def open_raw(raw: Path, images: Path | None = None, no_restval: bool = False, exif: str | None = None) -> RawSet:
    """Karpathy's file. An item is an image.

    Args:
        images: the folder of ``train2014`` and ``val2014``, if it is not ``raw``.
        no_restval: do not count Karpathy's ``restval`` as ``train``, as everybody does (113,287 images).
        exif: as of `rb.data.shard_writer.ShardWriter`.

    Raises:
        ValueError: a raw file or folder is missing or another than expected.
    """
    file = require_raw(raw / "dataset_coco.json", LAYOUT)
    notes: Counter[str] = Counter()
    content = read_json(file, _FIELDS, notes)
    if not isinstance(content, dict):
        raise ValueError(f"{file}: must be an object with the field 'images'")
    listed = objects_of(content.get("images"), f"{file}: images")

    def plan(split: str) -> Plan:
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        wanted = {split} if split != "train" or no_restval else {split, "restval"}
        entries = [entry for entry in listed if entry.get("split") in wanted]
        if not entries:
            raise ValueError(f"{file}: no image of split {split!r}; {_what_it_has(listed)}")
        _check_folders(images or raw, entries)
        return Plan(
            NAME,
            IMAGE,
            split,
            "images",
            collect=lambda conversion: _collect(conversion, entries, images or raw),
            read=lambda item: item.file.read(exif),
            write=lambda conversion, item, image: write_captions(conversion, item, image, NAME, split),
            notes=notes.copy(),
            exif=exif,
        )

    return RawSet(tuple(s for s in SPLITS if any(entry.get("split") == s for entry in listed)), [file], plan)


def _what_it_has(listed: list[dict[str, Any]]) -> str:
    names = sorted({str(entry["split"]) for entry in listed if entry.get("split") is not None})
    return f"it has {', '.join(names)}" if names else "its images have no field 'split', so this is not Karpathy's file"


def _collect(conversion: Conversion, entries: list[dict[str, Any]], root: Path) -> list[CaptionedImage]:
    items = []
    for entry in entries:
        number = entry.get("cocoid")
        source = f"{NAME}/{number}"
        if not is_id(number):
            conversion.tally.read += 1
            conversion.reject(source, Reason.UNKNOWN_IMAGE, f"cocoid must be a whole number, got {number!r:.80}")
            continue
        sentences = entry.get("sentences")
        rows = sentences if isinstance(sentences, list) else []
        texts = [row.get("raw") if isinstance(row, dict) else None for row in rows]
        items.append(CaptionedImage(ImageFile(source, root, _parts(entry)), texts))
    return items


def _parts(entry: dict[str, Any]) -> tuple[object, ...]:
    """Folder and file name of an entry; the folder may be left out."""
    folder = entry.get("filepath")
    return (folder, entry.get("filename")) if folder else (entry.get("filename"),)


def _check_folders(root: Path, entries: list[dict[str, Any]]) -> None:
    """A whole folder of images that is not there is a mistake of the call, not a hundred thousand rejected items."""
    folders = Counter(entry.get("filepath", "") for entry in entries if isinstance(entry.get("filepath", ""), str))
    for folder, count in folders.items():
        if count * 100 >= len(entries):
            try:
                path = safe_path(root, folder) if folder else root
            except RejectedError:
                continue  # its images are rejected one by one
            require_raw(path, LAYOUT)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``rb prepare coco``."""
    parser.add_argument("--images", type=Path, help="the folder that holds train2014 and val2014 (default: RAW)")
    add_exif(parser)
    parser.add_argument("--no-restval", action="store_true", help="train without Karpathy's restval images")
