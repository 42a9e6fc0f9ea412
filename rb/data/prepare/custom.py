"""One's own data: a table of captions (and boxes) beside a folder of images or clouds, to shards, one folder for each split.

Columns and the form of boxes are guessed and shown, or told. What can be read in two ways is refused, not guessed.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rb.core.boxes import clip_xyxy, cloud_box_problem, image_box_problem, points_in_box
from rb.core.modality import IMAGE, IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION
from rb.core.output import note, say_json
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
    Tally,
    add_exif,
    attempt,
    read_image,
    report,
    safe_path,
    summary,
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
from rb.data.prepare.tables import READERS
from rb.sources.cloud_arrays import MAX_BYTES

LAYOUT = """  --csv FILE (a header line; also TSV), --jsonl FILE, --json-list FILE, --coco FILE or --parquet FILE: one row a caption, with
      a column for the file's name in --images or --clouds and one for the caption; for regions a box too; object and split may be there
  --images DIR   .jpg, .png, .webp; boxes are x1, y1, x2, y2 or x, y, width, height, in pixels or in shares of the image's size
  --clouds DIR   .ply, .pcd, .xyz, .npy, .npz, .pt: [N, 3 or 6]; boxes are min x, y, z, max x, y, z in the cloud's own units"""


def convert(ask: Request) -> dict[str, Tally]:
    """One set of shards for each split; an item is a row.

    Raises:
        ValueError: a column that cannot be found, boxes that can be read in two ways, too many bad rows (names three), a folder that is not
            empty.
    """
    if not ask.media.is_dir():
        raise ValueError(f"{ask.media}: is no folder; give the folder of the {'clouds' if ask.clouds else 'images'}")
    if not ask.table.is_file():
        raise ValueError(f"{ask.table}: not found")
    notes: Counter[str] = Counter()
    found = read_rows(ask, notes)
    note(f"{ask.table}: {found.rows:,} rows, columns {found.columns}")
    form, unit = XYXY, PIXELS
    if found.columns.box and not ask.clouds:
        form, unit = meaning(ask, found)
        note(f"boxes: {form}, in {'pixels' if unit == PIXELS else 'shares of the image'}")
    if not found.splits:
        raise ValueError(f"{ask.table}: no row can be used; {named(found.bad)}")
    reader = _Reader(ask, bool(found.columns.box), form, unit)
    tallies = {}
    for split in sorted(found.splits, key=SPLITS.index):
        tallies[split] = _write_split(reader, split, found.splits[split], found.bad, notes)
        found.bad, notes = [], Counter()  # listed once, with the first split
    return tallies


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


def _write_split(
    reader: _Reader, split: str, files: dict[str, list[Item]], bad: list[tuple[int, str]], notes: Counter[str]
) -> Tally:
    """One split's shards."""
    from rb.data.shards import ShardWriter  # loads torch, which parsers need not wait for

    ask, faults = reader.ask, []
    with ShardWriter(
        ask.out / split, ask.name, reader.modality, split, overwrite=ask.overwrite, exif=ask.exif
    ) as writer:
        conversion = Conversion(writer, "rows", notes)

        def reject(item: int, file: str, reason: str, detail: str, object_id: str | None = None) -> None:
            conversion.reject(file, reason, f"row {item}: {detail}", object_id)
            faults.append(f"row {item}: {detail}")

        for number, why in bad:
            conversion.tally.read += 1
            reject(number, f"row {number}", Reason.MALFORMED_ROW, why)
        for (file, items), content in attempt(
            reader.read, files.items(), len(files), f"{ask.name} {split}", ask.workers
        ):
            conversion.tally.read += len(items)
            if isinstance(content, RejectedError):
                for item in items:
                    reject(item.number, file, content.reason, content.detail)
                continue
            _write_source(reader, conversion, split, file, items, content, reject)
        if len(faults) > ask.most_bad * conversion.tally.read:
            raise ValueError(
                f"{ask.table}: {len(faults):,} of {conversion.tally.read:,} rows of split {split!r} cannot be used: {'; '.join(faults[:3])}; "
                f"{ask.out / split} was not written; correct them, or allow more with --most-bad SHARE"
            )
    return conversion.finish()


def _write_source(
    reader: _Reader,
    conversion: Conversion,
    split: str,
    file: str,
    items: list[Item],
    content: Any,
    reject: Any,
) -> None:
    """One file's record: captions of the whole, or of its regions; rows of one object, or of one box, are one region."""
    source = f"{reader.ask.name}/{file.replace('#', '_')}"
    whole: list[str] = []
    regions: dict[str, ObjectAnnotation] = {}
    used = 0
    for item in items:
        texts = item.caption if isinstance(item.caption, list) else [item.caption]
        try:
            captions = conversion.captions(source, texts, item.object_id)
            if reader.regional:
                box = reader.box(item, content)
                key = item.object_id or ",".join(f"{value:g}" for value in box)
                known = regions.setdefault(key, ObjectAnnotation(key, box, []))
                if known.box != box:
                    raise RejectedError(Reason.MALFORMED_ROW, f"object {key!r} has another box in an earlier row")
                known.captions.extend(captions)
            else:
                whole.extend(captions)
        except RejectedError as error:
            reject(item.number, file, error.reason, error.detail, item.object_id)
            continue
        used += 1
        conversion.keep(1, len(captions))
    if not used:
        return
    data, extension, size = _stored(content)
    conversion.writer.write(
        Record(source, reader.ask.name, split, *size, whole, list(regions.values())), data, extension
    )


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
        tables.add_argument(f"--{kind}", type=Path, metavar="FILE", dest=kind, help=f"a table: {kind}")
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


def run(args: argparse.Namespace) -> int:
    """``rb prepare custom``."""
    kind = next(kind for kind in READERS if getattr(args, kind) is not None)
    told = dict(pair.partition("=")[::2] for pair in args.column)
    shares = {split: getattr(args, split) for split in ("val", "test") if getattr(args, split)}
    if any(share < 0 for share in shares.values()) or sum(shares.values()) >= 1:
        raise ValueError(
            f"--val and --test: {', '.join(map(str, shares.values()))}: shares of the files, less than 1 together"
        )
    name = args.name or args.out.resolve().name
    ask = Request(
        getattr(args, kind),
        kind,
        args.images or args.clouds,
        args.clouds is not None,
        args.out,
        name,
        told,
        args.boxes,
        shares,
        args.most_bad,
        args.min_points,
        args.overwrite,
        args.workers,
        args.exif,
    )
    tallies = convert(ask)
    if args.json:
        say_json([summary(tally, f"{name}, split {split}", args.out / split) for split, tally in tallies.items()])
        return 0
    for split, tally in tallies.items():
        report(tally, f"{name}, split {split}", args.out / split)
    return 0
