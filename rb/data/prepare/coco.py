"""COCO captions in Karpathy's split (``dataset_coco.json`` and the JPEG files) to shards of whole images. Knows no boxes.

Source ids are ``coco/<image id>``, the same as RefCOCO's, so that one image is one source in both.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from rb.core.modality import IMAGE
from rb.data.formats import Record
from rb.data.prepare.common import (
    CheckedImage,
    Conversion,
    Reason,
    RejectedError,
    Tally,
    add_exif,
    attempt,
    is_id,
    objects_of,
    read_image,
    read_json,
    report,
    require_raw,
    safe_path,
)

NAME = "coco"
SPLITS = ("train", "val", "test")
LAYOUT = """  RAW/dataset_coco.json        Karpathy's file
  RAW/train2014/COCO_train2014_000000000009.jpg ...
  RAW/val2014/COCO_val2014_000000000042.jpg ...   (or --images DIR, the folder that holds train2014 and val2014)"""
_FIELDS = frozenset({"images", "filepath", "filename", "cocoid", "split", "sentences", "raw"})


def convert(
    raw: Path,
    out: Path,
    split: str,
    restval: bool = True,
    images: Path | None = None,
    overwrite: bool = False,
    workers: int = 1,
    exif: str | None = None,
) -> Tally:
    """One record per image with all its captions, original bytes kept; an item is an image.

    Args:
        restval: count Karpathy's ``restval`` as ``train``, as everybody does (113,287 images).
        images: the folder of ``train2014`` and ``val2014``, if it is not ``raw``.
        exif: as of `rb.data.shards.ShardWriter`.

    Raises:
        ValueError: a raw file or folder is missing or another than expected, no item could be used, ``out`` is not empty.
    """
    from rb.data.shards import ShardWriter  # loads torch, which parsers need not wait for

    file = require_raw(raw / "dataset_coco.json", LAYOUT)
    root = images or raw
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    notes: Counter[str] = Counter()
    content = read_json(file, _FIELDS, notes)
    if not isinstance(content, dict):
        raise ValueError(f"{file}: must be an object with the field 'images'")
    listed = objects_of(content.get("images"), f"{file}: images")
    wanted = {split, "restval"} if split == "train" and restval else {split}
    entries = [entry for entry in listed if entry.get("split") in wanted]
    if not entries:
        names = sorted({str(entry["split"]) for entry in listed if entry.get("split") is not None})
        has = (
            f"it has {', '.join(names)}"
            if names
            else "its images have no field 'split', so this is not Karpathy's file"
        )
        raise ValueError(f"{file}: no image of split {split!r}; {has}")
    _check_folders(root, entries)
    with ShardWriter(out, NAME, IMAGE, split, overwrite=overwrite, exif=exif) as writer:
        conversion = Conversion(writer, "images", notes)
        seen: set[int] = set()

        def read(entry: dict[str, Any]) -> CheckedImage:
            return read_image(safe_path(root, *_parts(entry)), exif)

        for entry, image in attempt(read, entries, len(entries), f"{NAME} {split}", workers):
            conversion.tally.read += 1
            source = f"{NAME}/{entry.get('cocoid')}"
            try:
                _write(conversion, entry, image, split, seen)
            except RejectedError as error:
                conversion.reject(source, error.reason, error.detail)
    return conversion.finish()


def _write(
    conversion: Conversion, entry: dict[str, Any], image: CheckedImage | RejectedError, split: str, seen: set[int]
) -> None:
    number = entry.get("cocoid")
    if not is_id(number):
        raise RejectedError(Reason.UNKNOWN_IMAGE, f"cocoid must be a whole number, got {number!r:.80}")
    assert isinstance(number, int)
    if number in seen:
        raise RejectedError(Reason.DUPLICATE_SOURCE, f"image {number} comes twice; the first is kept")
    if isinstance(image, RejectedError):
        raise image
    sentences = entry.get("sentences")
    texts = [s.get("raw") if isinstance(s, dict) else None for s in sentences] if isinstance(sentences, list) else []
    source = f"{NAME}/{number}"
    captions = conversion.captions(source, texts)
    record = Record(source, NAME, split, image.width, image.height, captions)
    conversion.writer.write(record, image.data, image.extension)
    seen.add(number)
    conversion.keep(1, len(captions))


def _parts(entry: dict[str, Any]) -> list[object]:
    """Folder and file name of an entry; the folder may be left out."""
    folder = entry.get("filepath")
    return [folder, entry.get("filename")] if folder else [entry.get("filename")]


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
    parser.add_argument("--split", default="train", choices=SPLITS, help="which split (default: train)")
    parser.add_argument("--images", type=Path, help="the folder that holds train2014 and val2014 (default: RAW)")
    add_exif(parser)
    parser.add_argument("--no-restval", action="store_true", help="train without Karpathy's restval images")


def run(args: argparse.Namespace) -> int:
    """``rb prepare coco``."""
    tally = convert(
        args.raw, args.out, args.split, not args.no_restval, args.images, args.overwrite, args.workers, args.exif
    )
    report(tally, f"coco, split {args.split}", args.out, args.json)
    return 0
