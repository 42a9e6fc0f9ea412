"""Objaverse point clouds (ULIP's ``<uid>_8192.npz``, PointLLM's ``.npy``) with Cap3D's captions to shards of whole clouds.

Points are stored as float32 in the file's own unit; the cloud's frame is made when a sample is read. Source ids are ``objaverse/<uid>``.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rb.core.modality import POINT_CLOUD
from rb.core.seeding import uniform
from rb.data.formats import Record
from rb.data.prepare.cap3d import CaptionTable, read_captions
from rb.data.prepare.clouds import read_cloud
from rb.data.prepare.common import Conversion, Reason, RejectedError, require_raw
from rb.data.prepare.plan import Plan, RawSet
from rb.data.prepare.raw_text import read_text
from rb.sources.cloud_arrays import claimed_points

NAME = "objaverse"
SPLITS = ("train", "val", "test")
DEFAULT_MIN_POINTS = 512  # Point-BERT's number of groups
HASHED_SHARE = 0.02  # of val and of test, where no lists of uids are given
LAYOUT = """  RAW/Cap3D_automated_Objaverse.csv     uid,caption without a header   (or --captions FILE)
  RAW/objaverse_pc_parallel/<uid>/<uid>_8192.npz   ULIP's, or .npy; PointLLM's RAW/8192_npy/<uid>_8192.npy   (or --points DIR)
  RAW/train.txt, val.txt, test.txt      one uid a line, optional: a missing train.txt means all others, no list at all a split by hash;
      or RegionBLIP's Cap3D_automated_Objaverse_train.txt and so on: uid,caption; then no .csv is needed"""
_UID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")
_COUNTED = re.compile(r"_[1-9]\d*")  # the number of points behind a uid


def open_raw(
    raw: Path, captions: Path | None = None, points: Path | None = None, min_points: int = DEFAULT_MIN_POINTS
) -> RawSet:
    """Lists, captions and the folder of clouds. An item is an object of the split, or a row of the captions' file that is none.

    Args:
        captions: Cap3D's file, if it is not the one ``.csv`` in ``raw``.
        points: the folder of the clouds.
        min_points: clouds of fewer are rejected.

    Raises:
        ValueError: a raw file is missing or damaged, a uid is in two lists.
    """
    if min_points < 1:
        raise ValueError(f"min_points must be at least 1, got {min_points}")
    notes: Counter[str] = Counter()
    lists = read_lists(raw, notes)
    file = captions or _find_captions(raw, lists)
    table = read_captions(file, notes) if file else CaptionTable()
    files = [path for path in (file, *(one.file for one in lists.values())) if path]

    def plan(split: str) -> Plan:
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        uids = choose_uids(raw, split, table.captions, lists)
        known = _with_lists(table, split, lists)
        if not uids and not known.malformed:
            raise ValueError(f"{', '.join(map(str, files))}: no uid of split {split!r}")
        clouds = CloudFolder(points or _find_points(raw), set(uids) | known.captions.keys())

        def read(uid: str) -> NDArray[np.float32]:
            if uid not in known.captions:
                raise RejectedError(Reason.NO_CAPTION, f"{file or 'the lists'}: no row of this uid")
            return read_cloud(clouds.find(uid), min_points)

        return Plan(
            NAME,
            POINT_CLOUD,
            split,
            "objects",
            collect=lambda conversion: _collect(conversion, uids, known),
            read=read,
            write=lambda conversion, uid, cloud: _write(conversion, uid, cloud, known, split),
            notes=notes.copy(),
        )

    return RawSet(tuple(split for split in SPLITS if split in lists or not lists or split == "train"), files, plan)


def _collect(conversion: Conversion, uids: list[str], table: CaptionTable) -> list[str]:
    for line, detail in table.malformed:
        conversion.tally.read += 1
        conversion.reject(f"line {line}", Reason.MALFORMED_ROW, detail)
    inside = set(uids)
    for uid, place in table.repeated:
        if uid in inside:
            conversion.tally.read += 1
            conversion.reject(
                f"{NAME}/{uid}", Reason.DUPLICATE_SOURCE, f"{place}: this uid came before; the first caption is kept"
            )
    return uids


def _write(
    conversion: Conversion, uid: str, cloud: NDArray[np.float32] | RejectedError, table: CaptionTable, split: str
) -> None:
    from rb.sources.points import EXTENSION, encode_points  # loads torch, which parsers need not wait for

    conversion.tally.read += 1
    source = f"{NAME}/{uid}"
    try:
        if isinstance(cloud, RejectedError):
            raise cloud
        texts = conversion.captions(source, [table.captions[uid]])
    except RejectedError as error:
        conversion.reject(source, error.reason, error.detail)
        return
    conversion.writer.write(Record(source, NAME, split, 0, 0, texts), encode_points(cloud), EXTENSION)
    conversion.keep(1, len(texts))


def _find_captions(raw: Path, lists: Mapping[str, SplitList]) -> Path | None:
    """The captions' file; none where the lists hold captions and no other file is there."""
    default = raw / "Cap3D_automated_Objaverse.csv"
    if default.is_file():
        return default
    found = [path for path in sorted(raw.glob("*.csv")) if not path.name.startswith("._")]  # macOS's beside each file
    if len(found) > 1:
        raise ValueError(
            f"{raw}: several captions' files ({', '.join(f.name for f in found)}); choose one with --captions"
        )
    if found:
        return found[0]
    return None if any(one.captions for one in lists.values()) else require_raw(default, LAYOUT)


def _find_points(raw: Path) -> Path:
    places = [raw / "objaverse_pc_parallel", raw / "8192_npy"]
    return next((place for place in places if place.is_dir()), None) or require_raw(places[0], LAYOUT)


@dataclass(frozen=True)
class SplitList:
    """The list of a split: its uids, in order, and the captions where it is one of RegionBLIP's, which hold ``uid,caption``."""

    file: Path
    uids: list[str]
    captions: CaptionTable | None


def read_lists(raw: Path, notes: Counter[str]) -> dict[str, SplitList]:
    """The lists in ``raw``, by split: ``train.txt`` or RegionBLIP's ``Cap3D_automated_Objaverse_train.txt``.

    Raises:
        ValueError: two lists of one split, or a uid in the lists of two splits.
    """
    lists: dict[str, SplitList] = {}
    for split in SPLITS:
        files = [raw / f"{split}.txt", raw / f"Cap3D_automated_Objaverse_{split}.txt"]
        found = [file for file in files if file.is_file()]
        if len(found) > 1:
            raise ValueError(f"{files[0]} and {files[1]}: two lists of one split; remove one")
        if found:
            lists[split] = _read_list(found[0], notes)
    for first, second in itertools.combinations(lists.values(), 2):
        both = set(first.uids) & set(second.uids)
        if both:
            raise ValueError(
                f"{first.file} and {second.file}: {len(both)} uids are in both, such as {min(both)}; keep them in one"
            )
    return lists


def choose_uids(raw: Path, split: str, captions: Iterable[str], lists: Mapping[str, SplitList]) -> list[str]:
    """The uids of a split, in the order of its list or of the captions' file.

    Raises:
        ValueError: the split's list is missing while others are there.
    """
    if split in lists:
        return lists[split].uids
    if lists and split != "train":
        raise ValueError(
            f"{raw / split}.txt: not found, though there is {', '.join(one.file.name for one in lists.values())}; "
            "add it, or remove the lists"
        )
    if lists:
        taken = {uid for one in lists.values() for uid in one.uids}
        return [uid for uid in captions if uid not in taken]
    return [uid for uid in captions if hashed_split(uid) == split]


def _with_lists(table: CaptionTable, split: str, lists: Mapping[str, SplitList]) -> CaptionTable:
    """``table`` with what the split's own list says of uids that have no row there, and the list's faults."""
    own = lists[split].captions if split in lists else None
    if own is None:
        return table
    return CaptionTable(own.captions | table.captions, table.malformed + own.malformed, table.repeated + own.repeated)


def hashed_split(uid: str) -> str:
    """The split of a uid where there are no lists: the same in every run and on every machine, whatever else the file holds."""
    draw = uniform("objaverse split", uid)
    return "test" if draw < HASHED_SHARE else "val" if draw < 2 * HASHED_SHARE else "train"


def _read_list(file: Path, notes: Counter[str]) -> SplitList:
    lines = [line.strip() for line in read_text(file, notes).splitlines() if line.strip()]
    if lines and "," in lines[0]:
        table = read_captions(file, Counter())
        return SplitList(file, list(table.captions), table)
    return SplitList(file, list(dict.fromkeys(lines)), None)


class CloudFolder:
    """Finds ``<uid>[_N].npz|npy`` in ``root/<uid>/`` (ULIP) and in ``root`` itself (PointLLM; listed once, as it may hold 660,000).

    Args:
        uids: every known uid. A file whose whole name is another uid is that object's: ``chair_0001.npy`` is no cloud of ``chair``.
    """

    def __init__(self, root: Path, uids: Container[str]) -> None:
        self.root, self.uids = require_raw(root, LAYOUT), uids
        self._flat = _cloud_names(root)

    def find(self, uid: str) -> Path:
        """The file of ``uid``; of several, the one with the most points.

        Raises:
            RejectedError: none, or a uid that could leave the folder.
        """
        if not _UID.fullmatch(uid):
            raise RejectedError(Reason.UNSAFE_NAME, f"{uid!r:.200} is no uid")
        folder = self.root / uid
        listed = [(self.root, self._flat), (folder, _cloud_names(folder) if folder.is_dir() else [])]
        paths = [place / name for place, names in listed for name in self._named(uid, names)]
        if not paths and listed[1][1]:
            paths = [folder / name for name in listed[1][1] if name.startswith(uid)]
        if not paths:
            raise RejectedError(
                Reason.POINTS_MISSING,
                f"no {folder}/{uid}_8192.npz, nor {self.root}/{uid}_8192.npy, with or without the number{_others(folder, uid)}",
            )
        return paths[0] if len(paths) == 1 else max(paths, key=claimed_points)

    def _named(self, uid: str, names: list[str]) -> list[str]:
        """Those of the sorted ``names`` that are ``uid``, or ``uid`` with a number of points."""
        end = bisect.bisect_left(names, uid + "`")  # the sign behind "_"
        mine = names[bisect.bisect_left(names, uid + ".") : end]
        stems = [(name, name.rsplit(".", 1)[0]) for name in mine]
        return [
            name
            for name, stem in stems
            if stem == uid or (_COUNTED.fullmatch(stem, len(uid)) and stem not in self.uids)
        ]


def _others(folder: Path, uid: str) -> str:
    """What else is in ``folder`` for ``uid``, for an error."""
    names = sorted(path.name for path in folder.iterdir() if path.name.startswith(uid)) if folder.is_dir() else []
    return f"; there is {', '.join(names)[:200]}: save it as .npy" if names else ""


def _cloud_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".npz", ".npy"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``rb prepare objaverse``."""
    parser.add_argument("--captions", type=Path, help="Cap3D's file (default: the one .csv in RAW)")
    parser.add_argument("--points", type=Path, help="the folder of the clouds (default: RAW/objaverse_pc_parallel)")
    less = f"reject clouds of fewer points (default: {DEFAULT_MIN_POINTS:,})"
    parser.add_argument("--min-points", type=int, default=DEFAULT_MIN_POINTS, help=less)
