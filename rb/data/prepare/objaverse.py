"""Objaverse point clouds (ULIP's ``<uid>_8192.npz``, PointLLM's ``.npy``) with Cap3D's captions to shards of whole clouds.

Points are stored as float32 in the file's own unit; the cloud's frame is made when a sample is read. Source ids are ``objaverse/<uid>``.
"""

from __future__ import annotations

import argparse
import io
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rb.core.modality import POINT_CLOUD
from rb.core.seeding import uniform
from rb.data.formats import Record
from rb.data.prepare.cap3d import read_captions
from rb.data.prepare.clouds import MAX_BYTES, parse_npy, usable_cloud
from rb.data.prepare.common import Conversion, Reason, RejectedError, Tally, attempt, report, require_raw
from rb.data.prepare.raw_text import read_text

NAME = "objaverse"
SPLITS = ("train", "val", "test")
DEFAULT_MIN_POINTS = 512  # Point-BERT's number of groups
HASHED_SHARE = 0.02  # of val and of test, where no lists of uids are given
LAYOUT = """  RAW/Cap3D_automated_Objaverse.csv     uid,caption without a header   (or --captions FILE)
  RAW/objaverse_pc_parallel/<uid>/<uid>_8192.npz   ULIP's, or .npy; PointLLM's RAW/8192_npy/<uid>_8192.npy   (or --points DIR)
  RAW/train.txt, val.txt, test.txt      one uid a line, optional: a missing train.txt means all others, no list at all a split by hash"""
_UID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")


def convert(
    raw: Path,
    out: Path,
    split: str,
    captions: Path | None = None,
    points: Path | None = None,
    min_points: int = DEFAULT_MIN_POINTS,
    **writing: Any,
) -> Tally:
    """One record per object; an item is an object of the split, or a row of the captions' file that is none.

    Args:
        captions: Cap3D's file, if it is not the one ``.csv`` in ``raw``.
        points: the folder of the clouds.
        min_points: clouds of fewer are rejected.
        writing: ``overwrite`` and ``workers``.

    Raises:
        ValueError: a raw file is missing or damaged, a uid is in two lists, no item could be used, ``out`` is not empty.
    """
    from rb.data.shards import ShardWriter  # loads torch, which parsers need not wait for
    from rb.sources.points import EXTENSION, encode_points

    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    if min_points < 1:
        raise ValueError(f"min_points must be at least 1, got {min_points}")
    notes: Counter[str] = Counter()
    table = read_captions(captions or _find_captions(raw), notes)
    clouds = CloudFolder(points or _find_points(raw))
    uids = choose_uids(raw, split, table.captions, notes)
    with ShardWriter(out, NAME, POINT_CLOUD, split, overwrite=writing.get("overwrite", False)) as writer:
        conversion = Conversion(writer, "objects", notes)
        for line, detail in table.malformed:
            conversion.tally.read += 1
            conversion.reject(f"line {line}", Reason.MALFORMED_ROW, detail)
        inside = set(uids)
        for uid, line in table.repeated:
            if uid in inside:
                conversion.tally.read += 1
                conversion.reject(
                    f"{NAME}/{uid}",
                    Reason.DUPLICATE_SOURCE,
                    f"line {line}: this uid came before; the first caption is kept",
                )

        def read(uid: str) -> NDArray[np.float32]:
            if uid not in table.captions:
                raise RejectedError(Reason.NO_CAPTION, "the captions' file has no row of this uid")
            return read_cloud(clouds.find(uid), min_points)

        workers = writing.get("workers", 1)
        for uid, cloud in attempt(read, uids, len(uids), f"{NAME} {split}", workers):
            conversion.tally.read += 1
            source = f"{NAME}/{uid}"
            try:
                if isinstance(cloud, RejectedError):
                    raise cloud
                texts = conversion.captions(source, [table.captions[uid]])
            except RejectedError as error:
                conversion.reject(source, error.reason, error.detail)
                continue
            writer.write(Record(source, NAME, split, 0, 0, texts), encode_points(cloud), EXTENSION)
            conversion.keep(1, len(texts))
    return conversion.finish()


def _find_captions(raw: Path) -> Path:
    default = raw / "Cap3D_automated_Objaverse.csv"
    if default.is_file():
        return default
    found = sorted(raw.glob("*.csv"))
    if len(found) > 1:
        raise ValueError(
            f"{raw}: several captions' files ({', '.join(f.name for f in found)}); choose one with --captions"
        )
    return found[0] if found else require_raw(default, LAYOUT)


def _find_points(raw: Path) -> Path:
    places = [raw / "objaverse_pc_parallel", raw / "8192_npy"]
    return next((place for place in places if place.is_dir()), None) or require_raw(places[0], LAYOUT)


def choose_uids(raw: Path, split: str, captions: Iterable[str], notes: Counter[str]) -> list[str]:
    """The uids of a split, in the order of its list or of the captions' file.

    Raises:
        ValueError: the split's list is missing while others are there, or a uid is in two lists.
    """
    files = {name: raw / f"{name}.txt" for name in SPLITS}
    lists = {name: _read_list(file, notes) for name, file in files.items() if file.is_file()}
    for first in lists:
        for second in lists:
            both = set(lists[first]) & set(lists[second]) if first < second else ()
            if both:
                raise ValueError(
                    f"{files[first]} and {files[second]}: {len(both)} uids are in both, such as {min(both)}; keep them in one"
                )
    if split in lists:
        return lists[split]
    if lists and split != "train":
        raise ValueError(
            f"{files[split]}: not found, though there is {', '.join(f'{n}.txt' for n in lists)}; add it, or remove the lists"
        )
    if lists:
        taken = {uid for uids in lists.values() for uid in uids}
        return [uid for uid in captions if uid not in taken]
    return [uid for uid in captions if hashed_split(uid) == split]


def hashed_split(uid: str) -> str:
    """The split of a uid where there are no lists: the same in every run and on every machine, whatever else the file holds."""
    draw = uniform("objaverse split", uid)
    return "test" if draw < HASHED_SHARE else "val" if draw < 2 * HASHED_SHARE else "train"


def _read_list(file: Path, notes: Counter[str]) -> list[str]:
    lines = read_text(file, notes).splitlines()
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


class CloudFolder:
    """Finds ``<uid>[_N].npz|npy`` in ``root/<uid>/`` (ULIP) or in ``root`` itself (PointLLM; listed once, as it may hold 660,000)."""

    def __init__(self, root: Path) -> None:
        self.root = require_raw(root, LAYOUT)
        self._flat = {re.sub(r"_\d+$", "", name.rsplit(".", 1)[0]): name for name in _cloud_names(root)}

    def find(self, uid: str) -> Path:
        """The file of ``uid``. ``RejectedError``: none, or a uid that could leave the folder."""
        if not _UID.fullmatch(uid):
            raise RejectedError(Reason.UNSAFE_NAME, f"{uid!r:.200} is no uid")
        if uid in self._flat:
            return self.root / self._flat[uid]
        folder = self.root / uid
        names = [name for name in _cloud_names(folder) if name.startswith(uid)] if folder.is_dir() else []
        if not names:
            raise RejectedError(Reason.POINTS_MISSING, f"no {folder}/{uid}_8192.npz")
        return folder / min(names)


def _cloud_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".npz", ".npy"))


def read_cloud(path: Path, min_points: int) -> NDArray[np.float32]:
    """[N, 3 | 6] float32 from ``.npy`` or the one array ``arr_0`` of ``.npz``, read without pickles and within bounds.

    Raises:
        RejectedError: unreadable, too few points, numbers that are not finite in float32, all points in one place.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES:,} bytes")
        data = path.read_bytes()
        if path.suffix == ".npz":
            with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open("arr_0.npy") as member:
                data = member.read(MAX_BYTES + 1)  # what the archive claims about its size is not believed
        array = parse_npy(data, (3, 6))
    except (
        ValueError,
        KeyError,
        OSError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise RejectedError(Reason.POINTS_UNREADABLE, f"{path}: {error}") from None
    return usable_cloud(array, str(path), min_points)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``rb prepare objaverse``."""
    parser.add_argument("--split", default="train", choices=SPLITS, help="which split (default: train)")
    parser.add_argument("--captions", type=Path, help="Cap3D's file (default: the one .csv in RAW)")
    parser.add_argument("--points", type=Path, help="the folder of the clouds (default: RAW/objaverse_pc_parallel)")
    less = f"reject clouds of fewer points (default: {DEFAULT_MIN_POINTS:,})"
    parser.add_argument("--min-points", type=int, default=DEFAULT_MIN_POINTS, help=less)


def run(args: argparse.Namespace) -> int:
    """``rb prepare objaverse``."""
    tally = convert(
        args.raw,
        args.out,
        args.split,
        args.captions,
        args.points,
        args.min_points,
        overwrite=args.overwrite,
        workers=args.workers,
    )
    report(tally, f"objaverse, split {args.split}", args.out)
    return 0
