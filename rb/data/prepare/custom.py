"""One's own data, to shards, one folder for each split: a table of captions (and boxes) beside a folder of images or clouds, or tars of both.

Columns and the form of boxes are guessed and shown, or told. What can be read in two ways is refused, not guessed.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rb.data.prepare.clouds import read_cloud
from rb.data.prepare.columns import PIXELS, SHARES
from rb.data.prepare.common import Conversion, RejectedError, add_exif, read_image, safe_path
from rb.data.prepare.custom_records import SPLITS, Item, Meaning, Records, first_notes
from rb.data.prepare.custom_rows import FORMS, Request, meaning, named, read_rows
from rb.data.prepare.plan import Plan, RawSet
from rb.data.prepare.tables import CLASS_FOLDERS, TABLES
from rb.sources.cloud_arrays import MAX_BYTES

if TYPE_CHECKING:
    from rb.data.prepare.custom_tars import Place, Sample

DEFAULT_MIN_POINTS = 64
MOST_BAD = 0.1  # share of bad rows with which a conversion still ends well
LAYOUT = """  --csv FILE (a header line; also TSV), --jsonl FILE, --json-list FILE, --coco FILE or --parquet FILE: one row a caption, with
      a column for the file's name in --images or --clouds and one for the caption; for regions a box too; object and split may be there
  --images DIR   .jpg, .png, .webp; boxes are x1, y1, x2, y2 or x, y, width, height, in pixels or in shares of the image's size
  --clouds DIR   .ply, .pcd, .xyz, .npy, .npz, .pt: [N, 3 or 6]; boxes are min x, y, z, max x, y, z in the cloud's own units
  --class-folders   in place of a table: DIR/<class>/... of --images or --clouds, for zero-shot classes (rb predict --task zeroshot)
  --tars 'DIR/*.tar'   in place of both: KEY.jpg (.png, .webp) with KEY.txt, KEY.json or both, as img2dataset packs them; the caption is
      the text, or a field of the JSON: --column caption=FIELD; boxes: --column box=FIELD with --boxes, one box or a list of them"""


def open_raw(  # noqa: PLR0913 (a parameter for each option)
    csv: Path | None = None,
    jsonl: Path | None = None,
    json_list: Path | None = None,
    coco: Path | None = None,
    parquet: Path | None = None,
    tars: Sequence[str] | None = None,
    class_folders: bool = False,
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
    """A table and a folder of images or clouds, or tars. Every split that is found is made.

    Args:
        csv, jsonl, json_list, coco, parquet: the table, one of them; or
        tars: files, folders or patterns; or
        class_folders: no table: a file's caption is the name of the folder of ``images`` or ``clouds`` that it is in.
        images, clouds: the folder of a table's files, one of them.
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
    media = images or clouds
    shares = {split: share for split, share in (("val", val), ("test", test)) if share}
    if any(share < 0 for share in shares.values()) or sum(shares.values()) >= 1:
        raise ValueError(
            f"--val and --test: {', '.join(map(str, shares.values()))}: shares of the files, less than 1 together"
        )
    told = dict(pair.partition("=")[::2] for pair in column)
    records = partial(Records, name or out.resolve().name, out=out, most_bad=most_bad)
    if tars is not None:
        if media is not None:
            raise ValueError(f"--tars: the images are in the tars; leave out --images and --clouds ({media})")
        return _open_tars(tars, told, boxes, shares, exif, records)
    if media is None:
        raise ValueError("--images or --clouds: name the folder of the files that the table's rows name")
    if class_folders:
        kind, table = CLASS_FOLDERS, media
    else:
        kind, table = next((kind, path) for kind, path in tables.items() if path is not None)
    ask = Request(table, kind, media, clouds is not None, told, boxes, shares, exif)
    return _open_table(ask, min_points, records)


def _open_table(ask: Request, min_points: int, records: Callable[..., Records]) -> RawSet:
    """An item of the plan is a file with its rows."""
    if not ask.media.is_dir():
        raise ValueError(f"{ask.media}: is no folder; give the folder of the {'clouds' if ask.clouds else 'images'}")
    if ask.kind != CLASS_FOLDERS and not ask.table.is_file():
        raise ValueError(f"{ask.table}: not found")
    notes: Counter[str] = Counter()
    found = read_rows(ask, notes)
    lines = [f"{ask.table}: {found.rows:,} rows, columns {found.columns}"]
    about = Meaning(ask.clouds, bool(found.columns.box))
    if found.columns.box and not ask.clouds:
        form, unit = meaning(ask, found)
        about = Meaning(ask.clouds, True, form, unit)
        lines.append(f"boxes: {form}, in {'pixels' if unit == PIXELS else 'shares of the image'}")
    if not found.splits:
        raise ValueError(f"{ask.table}: no row can be used; {named(found.bad)}")
    splits = tuple(sorted(found.splits, key=SPLITS.index))

    def read(entry: tuple[str, list[Item]]) -> Any:
        path = safe_path(ask.media, entry[0])
        return read_cloud(path, min_points, MAX_BYTES) if ask.clouds else read_image(path, ask.exif)

    def plan(split: str) -> Plan:
        first = split == splits[0]  # what belongs to no split is listed once
        work = records(split=split, meaning=about, where=str(ask.table), bad=found.bad if first else [])

        def collect(conversion: Conversion) -> Sequence[tuple[str, list[Item]]]:
            work.reject_bad(conversion)
            return list(found.splits[split].items())

        return Plan(
            work.name,
            about.modality,
            split,
            "rows",
            collect=collect,
            read=read,
            write=lambda conversion, entry, content: work.write(conversion, entry[0], entry[1], content),
            finish=work.finish,
            notes=first_notes(notes, first),
            exif=ask.exif,
        )

    return RawSet(splits, [ask.table] if ask.table.is_file() else [], plan, "\n".join(lines))


def _open_tars(
    patterns: Sequence[str],
    told: dict[str, str],
    boxes: str | None,
    shares: dict[str, float],
    exif: str | None,
    records: Callable[..., Records],
) -> RawSet:
    """An item of the plan is a sample."""
    # Loads torch, which parsers need not wait for.
    from rb.data.prepare.custom_tars import columns_of_tars, find_samples, find_tars, read_sample

    tars, where = find_tars(patterns), " ".join(patterns)
    found = find_samples(tars, shares)
    if not found.splits:
        raise ValueError(f"{where}: no sample can be used; {named(found.bad)}")
    columns, fields = columns_of_tars(found, told, where)
    lines = [f"{where}: {len(tars):,} tars, {found.samples:,} samples, {columns}; fields: {', '.join(fields)[:300]}"]
    about = Meaning(clouds=False, regional=bool(columns.box))
    if columns.box:
        if boxes is None:
            raise ValueError(
                f"{where}: say what the numbers of {','.join(columns.box)} mean: --boxes with one of {', '.join(FORMS)}"
            )
        form, _, share = boxes.partition("-")
        about = Meaning(False, True, form, SHARES if share else PIXELS)
    splits = tuple(sorted(found.splits, key=SPLITS.index))

    def plan(split: str) -> Plan:
        first = split == splits[0]
        work = records(split=split, meaning=about, where=where, bad=found.bad if first else [])

        def collect(conversion: Conversion) -> Sequence[Place]:
            work.reject_bad(conversion)
            return found.splits[split]

        def write(conversion: Conversion, place: Place, sample: Sample | RejectedError) -> None:
            if isinstance(sample, RejectedError):
                work.write(conversion, str(place), [Item("", None)], sample)  # the error names the place
            else:
                work.write(conversion, sample.key, sample.items, sample.image)

        return Plan(
            work.name,
            about.modality,
            split,
            "samples" if not columns.box else "boxes",
            collect=collect,
            read=partial(read_sample, columns=columns, exif=exif),
            write=write,
            finish=work.finish,
            notes=first_notes(found.notes, first),
            exif=exif,
        )

    return RawSet(splits, tars, plan, "\n".join(lines))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``rb prepare custom``."""
    tables = parser.add_mutually_exclusive_group(required=True)
    for kind in TABLES:
        tables.add_argument(f"--{kind}", type=Path, metavar="FILE", help=f"a table: {kind}")
    packed = "tars of images and captions: files, folders, or a pattern in quotes"
    tables.add_argument("--tars", nargs="+", metavar="GLOB", help=packed)
    classes = "no table: --images or --clouds holds a folder for each class, whose name is the caption of its files"
    tables.add_argument("--class-folders", action="store_true", help=classes)
    media = parser.add_mutually_exclusive_group()
    media.add_argument("--images", type=Path, metavar="DIR", help="the folder of a table's images")
    media.add_argument("--clouds", type=Path, metavar="DIR", help="the folder of a table's clouds")
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
