"""The converter of docs/extending.md ("A dataset"): regions of images from a CSV file, as a file of ``rb/data/prepare`` would stand.

One row of the file is one region: ``image,x1,y1,x2,y2,caption``, boxes in pixels.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

from rb.core.boxes import image_box_problem
from rb.core.modality import IMAGE_REGION
from rb.data.formats import ObjectAnnotation, Record
from rb.data.prepare.common import (
    Conversion,
    Reason,
    RejectedError,
    Tally,
    attempt,
    read_image,
    report,
    require_raw,
    safe_path,
)
from rb.data.shards import ShardWriter

NAME = "region-csv"
LAYOUT = """  RAW/regions.csv       image,x1,y1,x2,y2,caption
  RAW/images/a.jpg ..."""


def convert(raw: Path, out: Path, split: str, overwrite: bool = False, workers: int = 1) -> Tally:
    """One record per image with its regions, original bytes kept; an item is a region."""
    regions: dict[str, list[tuple[int, list[str]]]] = defaultdict(list)
    with require_raw(raw / "regions.csv", LAYOUT).open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.reader(file), 1):
            regions[row[0] if row else ""].append((number, row))
    with ShardWriter(out, NAME, IMAGE_REGION, split, overwrite=overwrite) as writer:
        conversion = Conversion(writer, "regions")
        found = attempt(lambda name: read_image(safe_path(raw / "images", name)), regions, len(regions), NAME, workers)
        for name, image in found:
            source, objects = f"{NAME}/{name}", []
            for number, row in regions[name]:
                conversion.tally.read += 1
                try:
                    if isinstance(image, RejectedError):
                        raise image
                    box = _box(row)
                    problem = image_box_problem(box, image.width, image.height)
                    if problem:
                        raise RejectedError(problem, f"box {box} in an image of {image.width} x {image.height}")
                    captions = conversion.captions(source, row[5:], str(number))
                    objects.append(ObjectAnnotation(str(number), box, captions))
                except RejectedError as error:
                    conversion.reject(source, error.reason, error.detail, str(number))
            if objects and not isinstance(image, RejectedError):
                record = Record(source, NAME, split, image.width, image.height, [], objects)
                writer.write(record, image.data, image.extension)
                conversion.keep(len(objects), len(objects))
    return conversion.finish()


def _box(row: list[str]) -> list[float]:
    try:
        x1, y1, x2, y2 = (float(value) for value in row[1:5])
    except ValueError:
        raise RejectedError(Reason.MALFORMED_ROW, f"not 'image,x1,y1,x2,y2,caption': {row!r:.100}") from None
    return [x1, y1, x2, y2]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``rb prepare region-csv``."""
    parser.add_argument("--split", default="train", help="name of the split that this file holds (default: train)")


def run(args: argparse.Namespace) -> int:
    """``rb prepare region-csv``."""
    report(convert(args.raw, args.out, args.split, args.overwrite, args.workers), NAME, args.out, args.json)
    return 0
