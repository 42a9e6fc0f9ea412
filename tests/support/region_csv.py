"""The converter of docs/extending.md ("A dataset"): regions of images from a CSV file, as a file of ``rb/data/prepare`` would stand.

One row of the file is one region: ``image,x1,y1,x2,y2,caption``, boxes in pixels.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

from rb.core.modality import IMAGE_REGION
from rb.data.prepare.common import Conversion, Reason, RejectedError, require_raw
from rb.data.prepare.image_sets import ImageFile, Region, RegionImage, write_regions
from rb.data.prepare.plan import Plan, RawSet

NAME = "region-csv"
LAYOUT = """  RAW/regions.csv       image,x1,y1,x2,y2,caption
  RAW/images/a.jpg ..."""


def open_raw(raw: Path) -> RawSet:
    """The file of regions. An item is a region."""
    file = require_raw(raw / "regions.csv", LAYOUT)
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))

    def plan(split: str) -> Plan:
        return Plan(
            NAME,
            IMAGE_REGION,
            split,
            "regions",
            collect=lambda conversion: _collect(conversion, rows, raw / "images"),
            read=lambda item: item.file.read(exif=None),
            write=lambda conversion, item, image: write_regions(conversion, item, image, NAME, split),
        )

    return RawSet(("train",), [file], plan)


def _collect(conversion: Conversion, rows: list[list[str]], images: Path) -> list[RegionImage]:
    """The images with their regions."""
    found: dict[str, list[Region]] = defaultdict(list)
    for number, row in enumerate(rows, 1):
        conversion.tally.read += 1
        source = f"{NAME}/{row[0] if row else ''}"
        try:
            box = _box(row)
            found[row[0]].append(Region(str(number), box, conversion.captions(source, row[5:], str(number))))
        except RejectedError as error:
            conversion.reject(source, error.reason, error.detail, str(number))
    return [RegionImage(ImageFile(f"{NAME}/{name}", images, (name,)), regions) for name, regions in found.items()]


def _box(row: list[str]) -> list[float]:
    try:
        x1, y1, x2, y2 = (float(value) for value in row[1:5])
    except ValueError:
        raise RejectedError(Reason.MALFORMED_ROW, f"not 'image,x1,y1,x2,y2,caption': {row!r:.100}") from None
    return [x1, y1, x2, y2]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""
