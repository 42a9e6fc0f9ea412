"""RegionCap-10M, and every list of regions in RegionBLIP's form, to shards of image regions: streamed, in any order, in bounded memory.

The file is one JSON list. A row is one caption of one region: ``{"image": relative path, "bbox": [x, y, width, height], "caption": text}``,
the box in pixels; ``image_id`` may stand in it and is not needed. One record per image. Rows of one image with equal boxes are one region.
Source ids are ``coco/<image id>`` for images under COCO's file names of 2014 or 2017, else ``NAME/<relative path>``; object ids are the number of the
region's first row, from 1.
"""

from __future__ import annotations

import argparse
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from rb.core import progress
from rb.core.boxes import xywh_to_xyxy
from rb.core.json_stream import stream_list
from rb.core.modality import IMAGE_REGION
from rb.data.prepare.common import CheckedImage, Conversion, Reason, RejectedError, add_exif, plain_path, require_raw
from rb.data.prepare.grouping import MAX_GROUP_BYTES, Group, Groups, Spool
from rb.data.prepare.image_sets import ImageFile, Region, RegionImage, four_numbers, write_regions
from rb.data.prepare.plan import Plan, RawSet

NAME = "regioncap"
LAYOUT = """  RAW/ANY_NAME.json     one list of {"image": path, "bbox": [x, y, width, height], "caption": text}; --annotations FILE where RAW has several
  RAW/images/...        the files of "image", relative to RAW/images or to RAW; or to --images DIR
The list has no splits: --split says what it is (default: train)."""
_FIELDS = frozenset({"image", "bbox", "caption"})
_ROW = struct.Struct("<Q4d")  # number, box x y w h; the caption follows
# COCO's names of 2014 and 2017; those of 2017 are numbers in a folder of that name.
_COCO = re.compile(r"(?:.*/)?(?:COCO_(?:train|val|test)20\d\d_|(?:train|val|test)2017/)(\d{12})\.\w+")


@dataclass
class _Read:
    """An image of the list: its regions, and its file's content or why there is none."""

    item: RegionImage
    image: CheckedImage | RejectedError


def open_raw(
    raw: Path, annotations: Path | None = None, name: str = NAME, images: Path | None = None, exif: str | None = None
) -> RawSet:
    """One list. An item is a row.

    Args:
        annotations: the file, as it is or inside ``raw``; default: the only JSON file of ``raw``.
        name: of the set, and the begin of source ids.
        images: the folder that "image" is relative to; default: ``raw/images``, or ``raw`` for a file that is not there.
        exif: as of `rb.data.shard_writer.ShardWriter`.

    Raises:
        ValueError: there is no such file or folder, or no single list.
    """
    if not re.fullmatch(r"[\w+-]+", name):
        raise ValueError(f"--name {name!a:.80}: use letters, digits, hyphens and underscores")
    file = _the_list(require_raw(raw, LAYOUT), annotations)
    roots = [require_raw(images, LAYOUT)] if images else [raw / "images", raw]

    def plan(split: str) -> Plan:
        return Plan(
            name,
            IMAGE_REGION,
            split,
            "rows",
            collect=lambda conversion: _collect(conversion, file, name),
            read=lambda group: _read(group, roots, name, exif),
            write=lambda conversion, group, read: _write(conversion, group, read, name, split),
            exif=exif,
        )

    return RawSet((), [file], plan)


def _the_list(raw: Path, named: Path | None) -> Path:
    if named is not None:
        return named if named.is_file() else require_raw(raw / named, LAYOUT)
    found = sorted(raw.glob("*.json"))
    if len(found) != 1:
        what = f"{len(found)} JSON files ({', '.join(path.name for path in found[:5])})" if found else "no JSON file"
        raise ValueError(
            f"{raw}: {what}; name the list with --annotations FILE. The raw folder should look like this:\n{LAYOUT}"
        )
    return found[0]


def _collect(conversion: Conversion, file: Path, name: str) -> Groups:
    """The rows by image; those are rejected that are none. A caption is checked here, a box when its image is read."""
    spool, tally = Spool(conversion.writer.scratch), conversion.tally
    rows = stream_list(file, _FIELDS, tally.notes)
    for number, row in enumerate(progress.bar(rows, desc=file.name, unit=" rows", unit_scale=True, delay=5), 1):
        tally.read += 1
        path = row.get("image") if isinstance(row, dict) else None
        source = f"{name}/{path}" if isinstance(path, str) else file.name
        try:
            if not isinstance(path, str) or not path:
                raise RejectedError(
                    Reason.MALFORMED_ROW, f"must be an object whose 'image' is a path, got {row!a:.120}"
                )
            box = four_numbers(row.get("bbox"), "bbox")
            (caption,) = conversion.captions(source, [row.get("caption")])
        except RejectedError as error:
            conversion.reject(source, error.reason, error.detail, str(number))
            continue
        spool.add(plain_path(path), _ROW.pack(number, *box) + caption.encode())
    return spool.grouped()


def _source_id(path: str, name: str) -> str:
    """``#`` has a meaning in sample ids, so it is written as in addresses."""
    found = _COCO.fullmatch(path)
    return f"coco/{int(found[1])}" if found else f"{name}/{path.replace('#', '%23')}"


def _read(group: Group, roots: list[Path], name: str, exif: str | None) -> _Read:
    """One image with its regions, from the first folder that has it."""
    regions, source = _regions(group), _source_id(group.source, name)
    items = [RegionImage(ImageFile(source, root, (group.source,)), regions) for root in roots]
    for item in items:
        try:
            return _Read(item, item.file.read(exif))
        except RejectedError as error:
            if item is items[-1] or error.reason != Reason.IMAGE_MISSING:
                return _Read(item, error)
    raise AssertionError(roots)


def _regions(group: Group) -> list[Region]:
    """The rows as regions: equal boxes are one."""
    if group.rows is None:
        raise RejectedError(
            Reason.MALFORMED_ROW, f"{group.count:,} rows of one image, with more than {MAX_GROUP_BYTES:,} bytes"
        )
    found: dict[tuple[float, ...], Region] = {}
    for row in group.rows:
        number, *numbers = _ROW.unpack_from(row)
        caption = row[_ROW.size :].decode()
        region = found.setdefault(tuple(numbers), Region(str(number), [], [], 0))
        region.captions.append(caption)
        region.count += 1
    for box, region in found.items():
        region.box = xywh_to_xyxy(box)
    return [*found.values()]


def _write(conversion: Conversion, group: Group, read: _Read | RejectedError, name: str, split: str) -> None:
    """One record, or its rows rejected."""
    if isinstance(read, RejectedError):
        for _ in range(group.count):
            conversion.reject(_source_id(group.source, name), read.reason, read.detail)
        return
    source = read.item.file.source
    if conversion.holds(source):
        read.image = RejectedError(Reason.DUPLICATE_SOURCE, f"another path of the image {source} came before")
    conversion.tally.notes["rows with the box of another row, put together"] += group.count - len(read.item.regions)
    write_regions(conversion, read.item, read.image, name, split)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``rb prepare regioncap``."""
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="the JSON list, where RAW holds several files")
    parser.add_argument("--images", type=Path, metavar="DIR", help='the folder that "image" is relative to')
    parser.add_argument("--name", default=NAME, help=f"of the set (default: {NAME})")
    add_exif(parser)
