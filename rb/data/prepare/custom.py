"""One's own data: a table of captions (and boxes) beside a folder of images or clouds, to shards, one folder for each split.

Columns and the form of boxes are guessed and shown, or told. What can be read in two ways is refused, not guessed.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rb.core.boxes import clip_xyxy, cloud_box_problem, image_box_problem, points_in_box
from rb.core.modality import IMAGE, IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION
from rb.data.formats import ObjectAnnotation, Record
from rb.data.prepare.clouds import read_cloud
from rb.data.prepare.columns import (
    PIXELS,
    XYXY,
    in_pixels,
)
from rb.data.prepare.common import (
    CheckedImage,
    Conversion,
    Reason,
    RejectedError,
    add_exif,
    read_image,
    safe_path,
)
from rb.data.prepare.custom_rows import (
    DEFAULT_MIN_POINTS,
    FORMS,
    MOST_BAD,
    SPLITS,
    Item,
    Request,
    meaning,
    named,
    read_rows,
)
from rb.data.prepare.plan import Plan, RawSet
from rb.data.prepare.tables import READERS
from rb.sources.cloud_arrays import MAX_BYTES

LAYOUT = """  --csv FILE (a header line; also TSV), --jsonl FILE, --json-list FILE, --coco FILE or --parquet FILE: one row a caption, with
      a column for the file's name in --images or --clouds and one for the caption; for regions a box too; object and split may be there
  --images DIR   .jpg, .png, .webp; boxes are x1, y1, x2, y2 or x, y, width, height, in pixels or in shares of the image's size
  --clouds DIR   .ply, .pcd, .xyz, .npy, .npz, .pt: [N, 3 or 6]; boxes are min x, y, z, max x, y, z in the cloud's own units"""


def open_raw(  # noqa: PLR0913 (a parameter for each option)
    csv: Path | None = None,
    jsonl: Path | None = None,
    json_list: Path | None = None,
    coco: Path | None = None,
    parquet: Path | None = None,
    images: Path | None = None,
    clouds: Path | None = None,
    name: str | None = None,
    column: Sequence[str] = (),
    boxes: str | None = None,
    val: float = 0.0,
    test: float = 0.0,
    most_bad: float = MOST_BAD,
    min_points: int = DEFAULT_MIN_POINTS,
    exif: str | None = None,
    out: Path = Path("custom"),
) -> RawSet:
    """A table and a folder of images or clouds. An item is a row; every split that is found is made.

    Args:
        csv, jsonl, json_list, coco, parquet: the table, one of them.
        images, clouds: the folder, one of them.
        name: of the set, and the first part of source ids; default: the name of ``out``.
        column: ``FIELD=NAME`` where the guess is wrong.
        boxes: one of ``FORMS``; none to find out.
        val, test: shares of the files, by a hash of their name; then a column for the split is not read.
        most_bad: with a larger share of bad rows nothing is written.
        min_points: clouds of fewer are rejected.
        exif: as of `rb.data.shard_writer.ShardWriter`.

    Raises:
        ValueError: a column that cannot be found, boxes that can be read in two ways.
    """
    tables = {"csv": csv, "jsonl": jsonl, "json-list": json_list, "coco": coco, "parquet": parquet}
    kind, table = next((kind, path) for kind, path in tables.items() if path is not None)
    media = images or clouds
    assert media is not None
    shares = {split: share for split, share in (("val", val), ("test", test)) if share}
    if any(share < 0 for share in shares.values()) or sum(shares.values()) >= 1:
        raise ValueError(
            f"--val and --test: {', '.join(map(str, shares.values()))}: shares of the files, less than 1 together"
        )
    told = dict(pair.partition("=")[::2] for pair in column)
    name = name or out.resolve().name
    ask = Request(table, kind, media, clouds is not None, out, name, told, boxes, shares, most_bad, min_points, exif)
    if not media.is_dir():
        raise ValueError(f"{media}: is no folder; give the folder of the {'clouds' if ask.clouds else 'images'}")
    if not table.is_file():
        raise ValueError(f"{table}: not found")
    notes: Counter[str] = Counter()
    found = read_rows(ask, notes)
    lines = [f"{table}: {found.rows:,} rows, columns {found.columns}"]
    form, unit = XYXY, PIXELS
    if found.columns.box and not ask.clouds:
        form, unit = meaning(ask, found)
        lines.append(f"boxes: {form}, in {'pixels' if unit == PIXELS else 'shares of the image'}")
    if not found.splits:
        raise ValueError(f"{table}: no row can be used; {named(found.bad)}")
    reader = _Reader(ask, bool(found.columns.box), form, unit)
    splits = tuple(sorted(found.splits, key=SPLITS.index))

    def plan(split: str) -> Plan:
        first = split == splits[0]  # what belongs to no split is listed once
        work = _Split(reader, split, found.bad if first else [])
        return Plan(
            name,
            reader.modality,
            split,
            "rows",
            collect=lambda conversion: work.collect(conversion, found.splits[split]),
            read=reader.read,
            write=work.write,
            finish=work.finish,
            notes=notes.copy() if first else Counter(),
            exif=exif,
        )

    return RawSet(splits, [table], plan, "\n".join(lines))


@dataclass(frozen=True)
class _Reader:
    """From a file and its items to what a record holds."""

    ask: Request
    regional: bool
    form: str
    unit: str

    @property
    def modality(self) -> str:
        """Which modality the records are of."""
        if self.ask.clouds:
            return POINT_CLOUD_REGION if self.regional else POINT_CLOUD
        return IMAGE_REGION if self.regional else IMAGE

    def read(self, entry: tuple[str, list[Item]]) -> Any:
        """The image, or the cloud [N, 3 | 6]."""
        path = safe_path(self.ask.media, entry[0])
        return read_cloud(path, self.ask.min_points, MAX_BYTES) if self.ask.clouds else read_image(path, self.ask.exif)

    def box(self, item: Item, content: Any) -> list[float]:
        """An item's box as a record holds it. ``RejectedError``: empty, outside, or without points."""
        assert item.box is not None
        if self.ask.clouds:
            if cloud_box_problem(item.box):
                raise RejectedError(Reason.BOX_EMPTY, f"box {item.box} must be min x, y, z, max x, y, z")
            if not points_in_box(content, item.box):
                raise RejectedError(Reason.BOX_WITHOUT_POINTS, f"box {item.box} holds none of {len(content)} points")
            return item.box
        size = (content.width, content.height)
        if len(item.box) != 4:
            raise RejectedError(Reason.BOX_EMPTY, f"box {item.box} of an image must be 4 numbers")
        box = in_pixels(item.box, self.form, self.unit, size)
        problem = image_box_problem(box, *size)
        if problem:
            raise RejectedError(
                problem, f"box {item.box} ({self.form}, {self.unit}) in an image of {size[0]} x {size[1]}"
            )
        return clip_xyxy(box, *size)


@dataclass
class _Split:
    """One split's rows on their way to records."""

    reader: _Reader
    split: str
    bad: list[tuple[int, str]]

    def collect(self, conversion: Conversion, files: dict[str, list[Item]]) -> list[tuple[str, list[Item]]]:
        """Reject what is no row; the files with their items."""
        for number, why in self.bad:
            conversion.tally.read += 1
            self._reject(conversion, number, f"row {number}", Reason.MALFORMED_ROW, why)
        return list(files.items())

    def write(self, conversion: Conversion, entry: tuple[str, list[Item]], content: Any) -> None:
        """One file's record: captions of the whole, or of its regions; rows of one object, or of one box, are one region."""
        file, items = entry
        conversion.tally.read += len(items)
        if isinstance(content, RejectedError):
            for item in items:
                self._reject(conversion, item.number, file, content.reason, content.detail)
            return
        source = f"{self.reader.ask.name}/{file.replace('#', '_')}"
        whole: list[str] = []
        regions: dict[str, ObjectAnnotation] = {}
        used = 0
        for item in items:
            texts = item.caption if isinstance(item.caption, list) else [item.caption]
            try:
                captions = conversion.captions(source, texts, item.object_id)
                if self.reader.regional:
                    self._add_region(regions, item, content, captions)
                else:
                    whole.extend(captions)
            except RejectedError as error:
                self._reject(conversion, item.number, file, error.reason, error.detail, item.object_id)
                continue
            used += 1
            conversion.keep(1, len(captions))
        if used:
            data, extension, size = _stored(content)
            record = Record(source, self.reader.ask.name, self.split, *size, whole, list(regions.values()))
            conversion.writer.write(record, data, extension)

    def finish(self, conversion: Conversion) -> None:
        """``ValueError`` names three of the bad rows where there are too many."""
        ask, tally = self.reader.ask, conversion.tally
        bad = sum(tally.rejected.values())
        if bad > ask.most_bad * tally.read:
            raise ValueError(
                f"{ask.table}: {bad:,} of {tally.read:,} rows of split {self.split!r} cannot be used: "
                f"{'; '.join(conversion.first_details)}; {ask.out / self.split} was not written; correct them, or allow more with --most-bad SHARE"
            )

    def _add_region(self, regions: dict[str, ObjectAnnotation], item: Item, content: Any, captions: list[str]) -> None:
        box = self.reader.box(item, content)
        key = item.object_id or ",".join(f"{value:g}" for value in box)
        known = regions.setdefault(key, ObjectAnnotation(key, box, []))
        if known.box != box:
            raise RejectedError(Reason.MALFORMED_ROW, f"object {key!r} has another box in an earlier row")
        known.captions.extend(captions)

    def _reject(
        self, conversion: Conversion, number: int, file: str, reason: str, detail: str, object_id: str | None = None
    ) -> None:
        conversion.reject(file, reason, f"row {number}: {detail}", object_id)


def _stored(content: Any) -> tuple[bytes, str, tuple[int, int]]:
    """(bytes, extension, size) of an image or a cloud as a shard holds it."""
    from rb.sources.points import EXTENSION, encode_points

    if isinstance(content, CheckedImage):
        return content.data, content.extension, (content.width, content.height)
    return encode_points(content), EXTENSION, (0, 0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``rb prepare custom``."""
    tables = parser.add_mutually_exclusive_group(required=True)
    for kind in READERS:
        tables.add_argument(f"--{kind}", type=Path, metavar="FILE", help=f"a table: {kind}")
    media = parser.add_mutually_exclusive_group(required=True)
    media.add_argument("--images", type=Path, metavar="DIR", help="the folder of the images")
    media.add_argument("--clouds", type=Path, metavar="DIR", help="the folder of the clouds")
    add_exif(parser)
    parser.add_argument("--name", help="of the set (default: the name of --out)")
    told = "where the guess is wrong: file, caption, box, object or split, and its column; box=x,y,w,h for several"
    parser.add_argument("--column", action="append", default=[], metavar="FIELD=NAME", help=told)
    parser.add_argument("--boxes", choices=FORMS, help="what the numbers of a box mean (default: found out)")
    for split in ("val", "test"):
        parser.add_argument(
            f"--{split}", type=float, default=0.0, metavar="SHARE", help=f"this share of the files is for {split} (0)"
        )
    parser.add_argument(
        "--most-bad", type=float, default=MOST_BAD, metavar="SHARE", help=f"bad rows that are tolerated ({MOST_BAD})"
    )
    parser.add_argument("--min-points", type=int, default=DEFAULT_MIN_POINTS, help=f"of a cloud ({DEFAULT_MIN_POINTS})")
