"""Visual Genome's region descriptions to shards of image regions, by four protocols, which the set's name tells apart.

Scores of one protocol say nothing about another's test set. ``densecap``: all regions of the images in DenseCap's splits. ``grit``: GRiT's
``train.json`` and ``test.json``, the test set of ASM, TAP and DINO-X. ``glamm``: a subset of it of one region an image, the test set of GLaMM,
Osprey and ControlCap. ``all``: every image, to train on.

Half of the images are COCO's photos, scaled to other sizes. They have COCO's source ids (``coco/<number>``, by ``image_data.json``), so that
``rb data verify --against`` finds a photo that is in two sets. Their boxes are in pixels of Visual Genome's files, and object ids begin with the
protocol's letters, so that no region is taken for one of COCO's. All other images are ``visual_genome/<number>``.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from rb.core.boxes import xywh_to_xyxy
from rb.core.modality import IMAGE_REGION
from rb.data.prepare.common import (
    CheckedImage,
    Conversion,
    Reason,
    RejectedError,
    add_exif,
    find_raw,
    is_id,
    read_json,
    require_raw,
)
from rb.data.prepare.genome_files import Gathered, ImageRegions, read_coco_style, read_descriptions, read_photos
from rb.data.prepare.image_sets import ImageFile, Region, RegionImage, write_regions
from rb.data.prepare.plan import Plan, RawSet

NAME = "visual_genome"
SPLITS = ("train", "val", "test")
PROTOCOLS = ("densecap", "grit", "glamm", "all")
LAYOUT = """  RAW/image_data.json               of every protocol
  RAW/VG_100K/2.jpg ..., RAW/VG_100K_2/1.jpg ...      (or all in RAW/images, or in the folder of --images)
  RAW/region_descriptions.json      of the protocols densecap and all; version 1.2 or 1.0
  RAW/densecap_splits.json          of densecap: info/densecap_splits.json of DenseCap's repository
  RAW/train.json, RAW/test.json     of grit: GRiT's VG_preprocessed_annotations (or in RAW/annotations)
  RAW/test_caption.json             of glamm: GLaMM's evaluation file (or in RAW/annotations)"""
_FILES = {"grit": {"train": "train.json", "test": "test.json"}, "glamm": {"test": "test_caption.json"}}
_OBJECTS = {"densecap": "vg", "all": "vg", "grit": "grit", "glamm": "glamm"}  # with which object ids begin
_FOLDERS = ("VG_100K", "VG_100K_2", "images", "images/VG_100K", "images/VG_100K_2", ".")
_Item = tuple[ImageFile, ImageRegions]


def open_raw(raw: Path, protocol: str = "densecap", images: Path | None = None, exif: str | None = None) -> RawSet:
    """The folder of Visual Genome. An item is a region.

    Args:
        protocol: one of ``PROTOCOLS``.
        images: the folder of the image files, or of ``VG_100K`` and ``VG_100K_2``, if it is not ``raw``.
        exif: as of `rb.data.shard_writer.ShardWriter`.

    Raises:
        ValueError: a raw file or folder is missing or another than expected.
    """
    assert protocol in PROTOCOLS
    photos = require_raw(raw / "image_data.json", LAYOUT)
    places = _places(raw if images is None else require_raw(images, LAYOUT))
    files, wanted = _annotations(raw, protocol)
    dataset = NAME if protocol == "all" else f"{NAME}_{protocol}"

    def plan(split: str) -> Plan:
        if split not in files:
            raise ValueError(f"--split {split}: protocol {protocol} has {', '.join(files)} in {raw}")

        def collect(conversion: Conversion) -> list[_Item]:
            if protocol in _FILES:
                gathered = read_coco_style(conversion, files[split])
                _check_protocol(files[split], protocol, gathered)
            else:
                gathered = read_descriptions(conversion, files[split], wanted.get(split))
                missing = wanted.get(split, set()) - gathered.keys()
                if missing:
                    conversion.tally.notes["images of the split without regions"] += len(missing)
            return _items(conversion, gathered, photos, places)

        def write(conversion: Conversion, item: _Item, image: CheckedImage | RejectedError) -> None:
            file, rows = item
            regions = _regions(conversion, file.source, rows, _OBJECTS[protocol])
            write_regions(conversion, RegionImage(file, regions), image, dataset, split)

        return Plan(
            dataset,
            IMAGE_REGION,
            split,
            "regions",
            collect,
            read=lambda item: item[0].read(exif),
            write=write,
            exif=exif,
        )

    used = [photos, *dict.fromkeys(files.values())]
    if wanted:
        used.append(_splits_file(raw))
    return RawSet(tuple(files), used, plan)


def _annotations(raw: Path, protocol: str) -> tuple[dict[str, Path], dict[str, set[int]]]:
    """Split -> its annotation file; split -> its images, where a file of splits says so."""
    if protocol in _FILES:
        names = _FILES[protocol]
        found = {split: [raw / name, raw / "annotations" / name] for split, name in names.items()}
        files = {split: next(filter(Path.is_file, places), None) for split, places in found.items()}
        if not any(files.values()):
            find_raw(raw, [*names.values()], LAYOUT)
        return {split: file for split, file in files.items() if file is not None}, {}
    descriptions = require_raw(raw / "region_descriptions.json", LAYOUT)
    if protocol == "all":
        return {"train": descriptions}, {}
    file = _splits_file(raw)
    content = read_json(file, frozenset(SPLITS), Counter())
    lists = content if isinstance(content, dict) else {}
    for split in SPLITS:
        if not isinstance(lists.get(split), list) or not all(map(is_id, lists[split])):
            raise ValueError(f"{file}: {split} must be a list of image numbers; this is another file than DenseCap's")
    return dict.fromkeys(SPLITS, descriptions), {split: set(lists[split]) for split in SPLITS}


def _splits_file(raw: Path) -> Path:
    return find_raw(raw, ("densecap_splits.json", "info/densecap_splits.json"), LAYOUT)


def _check_protocol(file: Path, protocol: str, gathered: Gathered) -> None:
    """The two test files have one form: GLaMM's has one region of each image, GRiT's dozens."""
    several = [number for number, image in gathered.items() if image.count > 1]
    if protocol == "glamm" and several:
        count = gathered[several[0]].count
        raise ValueError(f"{file}: image {several[0]} has {count} regions, GLaMM's file has one; see --protocol grit")
    if protocol == "grit" and not several and len(gathered) > 1:
        raise ValueError(
            f"{file}: no image has more than one region, so this is no file of GRiT's; see --protocol glamm"
        )


def _places(root: Path) -> dict[str, Path]:
    """Name of an image file -> the folder that holds it."""
    folders = [root / name for name in _FOLDERS if (root / name).is_dir()]
    found = {
        file.name: folder for folder in reversed(folders) for file in folder.iterdir() if file.name.endswith(".jpg")
    }
    if not found:
        raise ValueError(
            f"{root}: no image (1.jpg) in {', '.join(_FOLDERS)}. The raw folder should look like this:\n{LAYOUT}"
        )
    return found


def _items(conversion: Conversion, gathered: Gathered, photos_file: Path, places: dict[str, Path]) -> list[_Item]:
    """The images to read. Those that are not in ``image_data.json`` are rejected."""
    photos = read_photos(photos_file, conversion.tally.notes)
    items = []
    for number, image in gathered.items():
        photo = photos.get(number)
        if photo is None:
            for region in image.regions():
                conversion.tally.read += 1
                detail = f"image {number} is not in {photos_file.name}"
                conversion.reject(f"{NAME}/{number}", Reason.UNKNOWN_IMAGE, detail, str(region.identity))
            continue
        name = f"{number}.jpg"
        folder = places.get(name, next(iter(places.values())))
        items.append((ImageFile(photo.source, folder, (name,), image.size or photo.size), image))
    return items


def _regions(conversion: Conversion, source: str, image: ImageRegions, letters: str) -> list[Region]:
    """The regions of an image as far as its annotations can be used; counts all of them."""
    found: dict[str, Region] = {}
    for identity, box, phrase in image.regions():
        conversion.tally.read += 1
        object_id = f"{letters}{identity}"
        try:
            if not isinstance(identity, int):
                raise RejectedError(Reason.MALFORMED_ROW, f"the number of a region must be whole, got {identity}")
            if object_id in found:
                raise RejectedError(Reason.DUPLICATE_SOURCE, f"region {identity} comes twice; the first is kept")
            if box is None:
                raise RejectedError(Reason.BOX_EMPTY, f"region {identity}: its box is no four numbers")
            found[object_id] = Region(object_id, xywh_to_xyxy(box), conversion.captions(source, [phrase], object_id))
        except RejectedError as error:
            conversion.reject(source, error.reason, error.detail, object_id)
    conversion.tally.notes["images that COCO has, too"] += source.startswith("coco/")
    return list(found.values())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``rb prepare visual_genome``."""
    parser.add_argument(
        "--protocol",
        default="densecap",
        choices=PROTOCOLS,
        help="which images and regions (default: densecap); the set is named after it",
    )
    parser.add_argument("--images", type=Path, help="the folder of the image files, or of VG_100K (default: RAW)")
    add_exif(parser)
