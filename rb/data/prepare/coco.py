"""COCO captions (Karpathy's split, COCO's own, LAVIS's files) and Flickr30k in Karpathy's split to shards of whole images. Knows no boxes.

Source ids are ``coco/<image id>``, the same as RefCOCO's, so that one image is one source in both; Flickr30k's are ``flickr30k/<file stem>``.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from rb.core.modality import IMAGE
from rb.data.prepare.coco_files import FLICKR, SPLITS, CaptionFile, Entry, in_split, open_captions
from rb.data.prepare.coco_images import CocoFolder, find_coco_images
from rb.data.prepare.common import Conversion, add_exif, find_raw, require_raw
from rb.data.prepare.image_sets import CaptionedImage, ImageFile, write_captions
from rb.data.prepare.plan import Plan, RawSet

NAME = "coco"
LAYOUT = """  RAW/dataset_coco.json        Karpathy's file; or one of, also in RAW/annotations/, in this order:
      coco_karpathy_train.json, coco_karpathy_val.json, coco_karpathy_test.json    LAVIS's
      captions_train2017.json, captions_val2017.json                               COCO's own splits
      captions_train2014.json, captions_val2014.json
      dataset_flickr30k.json   Flickr30k, Karpathy's split, with the images in RAW/flickr30k-images/
      (or --annotations FILE, any of these under any name)
  RAW/train2014/COCO_train2014_000000000009.jpg ...
  RAW/val2014/COCO_val2014_000000000042.jpg ...
  or RAW/train2017/000000000009.jpg, RAW/val2017/...   for files of either year
      (or --images DIR, the folder that holds train2014 and val2014; also RAW/images/; of Flickr30k the folder of the files)"""
_FAMILIES = (
    ("dataset_coco.json",),
    tuple(f"coco_karpathy_{split}.json" for split in SPLITS),
    *(tuple(f"captions_{split}{year}.json" for split in ("train", "val")) for year in (2017, 2014)),
    ("dataset_flickr30k.json",),
)
_FLICKR_FOLDERS = ("flickr30k-images", "flickr30k_images", "images")


def open_raw(
    raw: Path,
    annotations: Path | None = None,
    images: Path | None = None,
    no_restval: bool = False,
    exif: str | None = None,
) -> RawSet:
    """The annotation files of one kind. An item is an image.

    Args:
        annotations: the annotation file, if it has another name or place than ``LAYOUT`` says.
        images: the folder of ``train2014`` and ``val2014`` (Flickr30k: of the files), if not in ``raw``.
        no_restval: do not count Karpathy's ``restval`` as ``train``, as everybody does (113,287 images).
        exif: as of `rb.data.shard_writer.ShardWriter`.

    Raises:
        ValueError: a raw file or folder is missing or another than expected.
    """
    files = [open_captions(file) for file in _find(raw, annotations)]
    first = files[0]
    for other in files[1:]:
        if (other.kind, other.dataset) != (first.kind, first.dataset):
            raise ValueError(
                f"{other.path}: {other.kind}, but {first.path}: {first.kind}; choose one of them with --annotations"
            )
    notes: Counter[str] = Counter()
    whole = first.entries(notes) if first.split is None else []
    nowhere = sum(not isinstance(entry.split, str) for entry in whole)
    if nowhere:
        notes["images without a split, in no set"] = nowhere
    held = (
        {str(entry.split) for entry in whole if entry.split}
        if first.split is None
        else {str(one.split) for one in files}
    )
    if not held.intersection(SPLITS):
        raise ValueError(f"{first.path}: no image of split {', '.join(SPLITS)}; {_what_it_has(held)}")

    def plan(split: str) -> Plan:
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        counted = Counter(notes)
        entries = list(in_split(whole, split, not no_restval))
        for one in files:
            if one.split == split:
                entries += one.entries(counted)
        if not entries:
            raise ValueError(f"{first.path}: no image of split {split!r}; {_what_it_has(held)}")
        items = _items(raw, images, first, entries)
        return Plan(
            first.dataset,
            IMAGE,
            split,
            "images",
            collect=lambda conversion: _collect(conversion, entries, items),
            read=lambda item: item.file.read(exif),
            write=lambda conversion, item, image: write_captions(conversion, item, image, first.dataset, split),
            notes=counted,
            exif=exif,
        )

    title = f"{', '.join(str(one.path) for one in files)}: {first.kind}"
    return RawSet(tuple(split for split in SPLITS if split in held), [one.path for one in files], plan, title)


def _find(raw: Path, annotations: Path | None) -> list[Path]:
    """The file that was told, else all of the first family that is there."""
    if annotations is not None:
        return [require_raw(annotations, LAYOUT)]
    for family in _FAMILIES:
        for folder in (raw, raw / "annotations"):
            found = [folder / name for name in family if (folder / name).exists()]
            if found:
                return found
    return [require_raw(raw / _FAMILIES[0][0], LAYOUT)]


def _what_it_has(held: set[str]) -> str:
    names = ", ".join(sorted(held))
    return f"it has {names}" if names else "its images have no field 'split', so this is not Karpathy's file"


def _items(raw: Path, images: Path | None, file: CaptionFile, entries: list[Entry]) -> list[CaptionedImage]:
    """The images of the entries that can be used."""
    good = [entry for entry in entries if entry.problem is None]
    if file.kind == FLICKR:
        root = find_raw(raw, _FLICKR_FOLDERS, LAYOUT) if images is None else require_raw(images, LAYOUT)
        return [CaptionedImage(ImageFile(entry.source, root, entry.parts), entry.captions) for entry in good]
    folder: CocoFolder = find_coco_images(raw, images)
    folder.check([entry.parts for entry in good], LAYOUT)
    return [
        CaptionedImage(folder.image(entry.source, entry.parts, entry.number or 0), entry.captions) for entry in good
    ]


def _collect(conversion: Conversion, entries: list[Entry], items: list[CaptionedImage]) -> list[CaptionedImage]:
    for entry in entries:
        if entry.problem is not None:
            conversion.tally.read += 1
            conversion.reject(entry.source, *entry.problem)
    return items


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``rb prepare coco``."""
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="the annotation file (default: found in RAW)")
    parser.add_argument("--images", type=Path, help="the folder that holds train2014 and val2014 (default: RAW)")
    add_exif(parser)
    parser.add_argument("--no-restval", action="store_true", help="train without Karpathy's restval images")
