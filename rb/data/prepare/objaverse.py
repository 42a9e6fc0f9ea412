"""Objaverse point clouds (ULIP's ``.npz``, PointLLM's ``.npy``, Cap3D's ``.ply``, ``.pt`` and zips) with captions of Cap3D or PointLLM to shards.

Points are stored as float32 in the file's own unit; the cloud's frame is made when a sample is read. Source ids are ``objaverse/<uid>``.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rb.core.modality import POINT_CLOUD
from rb.data.formats import Record
from rb.data.prepare.cap3d import CaptionTable, read_captions
from rb.data.prepare.cloud_folder import CloudFolder
from rb.data.prepare.common import Conversion, Reason, RejectedError, require_raw
from rb.data.prepare.object_splits import (
    LARGE,
    POINTLLM_FOLDER,
    SPLITS,
    TEST_PERCENT,
    SplitList,
    choose_uids,
    drawn_for_testing,
    read_lists,
)
from rb.data.prepare.plan import Plan, RawSet
from rb.data.prepare.pointllm import read_descriptions

NAME = "objaverse"
DEFAULT_MIN_POINTS = 512  # Point-BERT's number of groups
LAYOUT = """  RAW/Cap3D_automated_Objaverse.csv     uid,caption without a header; or PointLLM's PointLLM_brief_description_660K.json or
      PointLLM_brief_description_660K_filtered.json, there or in RAW/anno_data   (or --captions FILE)
  RAW/objaverse_pc_parallel/<uid>/<uid>_8192.npz   ULIP's; PointLLM's 8192_npy/<uid>_8192.npy; Cap3D's Cap3D_pcs_pt/<uid>.pt, <uid>.ply, or
      PointCloud_zips/compressed_pcs_00.zip and PointCloud_pt_zips/compressed_pcs_pt_00.zip as they are   (or --points DIR or ZIP)
  RAW/train.txt, val.txt, test.txt      one uid a line, optional: a missing train.txt means all others, no list at all a draw;
      or RegionBLIP's Cap3D_automated_Objaverse_train.txt and so on: uid,caption; then no .csv is needed;
      or Cap3D's training_set.pkl, validation_set.pkl, test_uids_2k.pkl; or PointLLM's val_object_ids_3000.txt (its 3,000 for evaluation),
      and PointLLM_brief_description_val_3000_GT.json with their captions"""
_TABLE = "Cap3D_automated_Objaverse.csv"
_DESCRIPTIONS = ("PointLLM_brief_description_660K.json", "PointLLM_brief_description_660K_filtered.json")
_POINTS = ("objaverse_pc_parallel", "8192_npy", "PointCloud_pt_zips", "PointCloud_zips", "Cap3D_pcs_pt", "Cap3D_pcs")


def open_raw(
    raw: Path,
    captions: Path | None = None,
    points: Path | None = None,
    min_points: int = DEFAULT_MIN_POINTS,
    val: int = 0,
) -> RawSet:
    """Lists, captions and the folder of clouds. An item is an object of the split, or a row of the captions' file that is none.

    Args:
        captions: the captions' file, if it is none of those in ``raw`` that have a published name.
        points: the folder or the zip of the clouds.
        min_points: clouds of fewer are rejected.
        val: objects to draw for validation, where there are no lists.

    Raises:
        ValueError: a raw file is missing or damaged, a uid is in two lists.
    """
    if min_points < 1:
        raise ValueError(f"min_points must be at least 1, got {min_points}")
    notes: Counter[str] = Counter()
    lists = read_lists(raw, notes)
    if val < 0 or (val and lists):
        raise ValueError(f"--val {val}: objects are drawn, from 0 up, only where {raw} has no lists of uids")
    file = captions or _find_captions(raw, lists)
    table = _read_captions(file, notes) if file else CaptionTable()
    files = [path for path in [file] if path] + [path for one in lists.values() for path in one.files]

    @cache
    def clouds() -> CloudFolder:
        known = [table.captions, *(one.uids for one in lists.values())]
        return CloudFolder(require_raw(points or _find_points(raw), LAYOUT), {uid for uids in known for uid in uids})

    def plan(split: str) -> Plan:
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        uids = choose_uids(raw, split, table.captions, lists, val)
        known = _with_lists(table, split, lists)
        if not uids and not known.malformed:
            raise ValueError(f"{', '.join(map(str, files))}: no uid of split {split!r}")
        folder = clouds()

        def read(uid: str) -> NDArray[np.float32]:
            if uid not in known.captions:
                raise RejectedError(Reason.NO_CAPTION, f"{file or 'the lists'}: no row of this uid")
            return folder.read(uid, min_points)

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

    drawn = {"train": True, "val": val > 0, "test": drawn_for_testing(len(table.captions)) > 0}
    there = [
        split for split in SPLITS if split in lists or (lists and split == "train") or (not lists and drawn[split])
    ]
    return RawSet(tuple(there), files, plan, "" if lists else _drawn(len(table.captions), val))


def _drawn(objects: int, val: int) -> str:
    """The draw of splits, in a line for people."""
    share = "" if objects >= LARGE else f" ({TEST_PERCENT} %, as there are fewer than {LARGE:,})"
    more = f" and {val:,} for validation" if val else ""
    return f"no lists of uids: {drawn_for_testing(objects):,} of {objects:,} objects{share} are drawn for testing{more}, by their uids"


def _collect(conversion: Conversion, uids: list[str], table: CaptionTable) -> list[str]:
    for line, detail in table.malformed:
        conversion.tally.read += 1
        conversion.reject(f"{table.place} {line}", Reason.MALFORMED_ROW, detail)
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
    conversion.write(Record(source, NAME, split, 0, 0, texts), encode_points(cloud), EXTENSION, 1, len(texts))


def _read_captions(file: Path, notes: Counter[str]) -> CaptionTable:
    return read_descriptions(file, notes) if file.suffix == ".json" else read_captions(file, notes)


def _find_captions(raw: Path, lists: Mapping[str, SplitList]) -> Path | None:
    """The captions' file; none where the lists hold captions and no other file is there."""
    default = raw / _TABLE
    if default.is_file():
        return default
    tables = [path for path in sorted(raw.glob("*.csv")) if not path.name.startswith("._")]  # macOS's beside each file
    places = [raw / folder / name for name in _DESCRIPTIONS for folder in (".", POINTLLM_FOLDER)]
    found = [*tables, *[path for path in places if path.is_file()][:1]]
    if len(found) > 1:
        raise ValueError(
            f"{raw}: several captions' files ({', '.join(f.name for f in found)}); choose one with --captions"
        )
    if found:
        return found[0]
    return None if any(one.captions for one in lists.values()) else require_raw(default, LAYOUT)


def _find_points(raw: Path) -> Path:
    place = next((raw / name for name in _POINTS if (raw / name).is_dir()), None)
    return place or (raw if any(raw.glob("compressed_pcs*.zip")) else require_raw(raw / _POINTS[0], LAYOUT))


def _with_lists(table: CaptionTable, split: str, lists: Mapping[str, SplitList]) -> CaptionTable:
    """``table`` with what the split's own list says of uids that have no row there, and the list's faults."""
    own = lists[split].captions if split in lists else None
    if own is None:
        return table
    return CaptionTable(
        own.captions | table.captions, table.malformed + own.malformed, table.repeated + own.repeated, own.place
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``rb prepare objaverse``."""
    parser.add_argument("--captions", type=Path, help="Cap3D's .csv or PointLLM's .json (default: the one in RAW)")
    parser.add_argument(
        "--points", type=Path, help="the folder of the clouds, or of zips of them, or a zip (default: as above)"
    )
    less = f"reject clouds of fewer points (default: {DEFAULT_MIN_POINTS:,})"
    parser.add_argument("--min-points", type=int, default=DEFAULT_MIN_POINTS, help=less)
    drawn = "draw so many objects for validation, where there are no lists of uids (default: 0)"
    parser.add_argument("--val", type=int, default=0, metavar="N", help=drawn)
