"""ModelNet40, for classification without training on it: its text files, or the pickles of 8,192 points that Point-BERT and PointLLM ship.

A record's one caption is the name of its class as words ("night stand" for ``night_stand``), so that prompts are made of it and compared with
it exactly; ``CLASSES`` are all of them. Source ids are ``modelnet40/<class>_<number>``. Normals are left out; points stay as they are in the file.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rb.core.modality import POINT_CLOUD
from rb.data.formats import Record
from rb.data.prepare.array_pickle import ArrayPickle, StoredArray
from rb.data.prepare.clouds import MAX_BYTES, usable_cloud
from rb.data.prepare.common import Conversion, Reason, RejectedError, find_raw
from rb.data.prepare.plan import Plan, RawSet
from rb.data.prepare.raw_text import read_text

NAME = "modelnet40"
SPLITS = ("train", "test")
LAYOUTS = ("dat", "text")
DEFAULT_MIN_POINTS = 512  # Point-BERT's number of groups
LAYOUT = """  RAW/modelnet40_train_8192pts_fps.dat, modelnet40_test_8192pts_fps.dat      Point-BERT's and PointLLM's pickles, one of them is enough; or
  RAW/<class>/<class>_0001.txt      10,000 lines x,y,z,nx,ny,nz
  RAW/modelnet40_train.txt, modelnet40_test.txt      the lists: <class>_0001, one a line; beside pickles they give the objects their names
  RAW/modelnet40_shape_names.txt      optional, compared with the names that are known here
  RAW may also be the folder that holds modelnet40_normal_resampled or modelnet40_data."""
# In the order of the labels in the pickles.
CLASSES = (
    *("airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car", "chair", "cone", "cup", "curtain"),
    *("desk", "door", "dresser", "flower pot", "glass box", "guitar", "keyboard", "lamp", "laptop", "mantel"),
    *("monitor", "night stand", "person", "piano", "plant", "radio", "range hood", "sink", "sofa", "stairs", "stool"),
    *("table", "tent", "toilet", "tv stand", "vase", "wardrobe", "xbox"),
)
_FOLDERS = (".", "modelnet40_normal_resampled", "modelnet40_data")
_OBJECT = re.compile(r"([a-z_]+)_\d{4}")  # ``<class>_0001``


@dataclass(frozen=True)
class _Object:
    """``label``: of a pickle's object, read with its points."""

    name: str
    place: Path | StoredArray
    label: StoredArray | None = None


def open_raw(raw: Path, layout: str | None = None, min_points: int = DEFAULT_MIN_POINTS) -> RawSet:
    """The lists, and the pickles where there are some. An item is an object of a list or pickle.

    Args:
        layout: read the pickles (``dat``) or the text files (``text``); none: the pickle of a split where it is there.
        min_points: clouds of fewer are rejected.

    Raises:
        ValueError: a raw file is missing or damaged, the classes are others.
    """
    if min_points < 1:
        raise ValueError(f"min_points must be at least 1, got {min_points}")
    wanted = [f"{folder}/{name}" for folder in _FOLDERS for split in SPLITS for name in (_pickle(split), _list(split))]
    folder = find_raw(raw, wanted, LAYOUT).parent
    notes: Counter[str] = Counter()
    _check_classes(folder / "modelnet40_shape_names.txt", notes)
    lists = {s: _read_list(folder / _list(s), notes) for s in SPLITS if (folder / _list(s)).is_file()}
    pickles = [s for s in SPLITS if (folder / _pickle(s)).is_file() and layout != "text"]
    there = [s for s in SPLITS if s in pickles or (layout != "dat" and s in lists)]
    files = [folder / _list(s) for s in lists] + [folder / _pickle(s) for s in pickles]

    def plan(split: str) -> Plan:
        if split not in there:
            names = ", ".join(there) or "none"
            raise ValueError(f"{folder}: no files of split {split!r}; there are those of: {names}\n{LAYOUT}")
        stored = ArrayPickle(folder / _pickle(split)) if split in pickles else None
        objects = (
            [_Object(name, folder / name.rpartition("_")[0] / f"{name}.txt") for name in lists[split]]
            if stored is None
            else _of_pickle(stored, split, lists.get(split))
        )
        return Plan(
            NAME,
            POINT_CLOUD,
            split,
            "objects",
            collect=lambda conversion: _collect(conversion, objects, named=split in lists),
            read=lambda item: _read(stored, item, min_points),
            write=lambda conversion, item, content: _write(conversion, item, content, split),
            notes=notes.copy(),
        )

    unnamed = [s for s in pickles if s not in lists]
    title = "".join(f"no {_list(s)} beside the pickle: its objects are named {s}_0000 and so on. " for s in unnamed)
    return RawSet(tuple(there), files, plan, title.strip())


def _pickle(split: str) -> str:
    return f"modelnet40_{split}_8192pts_fps.dat"


def _list(split: str) -> str:
    return f"modelnet40_{split}.txt"


def _read_list(file: Path, notes: Counter[str]) -> list[str]:
    return [line.strip() for line in read_text(file, notes).splitlines() if line.strip()]


def _check_classes(file: Path, notes: Counter[str]) -> None:
    names = _read_list(file, notes) if file.is_file() else list(CLASSES)
    if [name.replace("_", " ") for name in names] != list(CLASSES):
        raise ValueError(f"{file}: these are not the 40 classes of ModelNet40 in their order; download it again")


def _of_pickle(stored: ArrayPickle, split: str, names: list[str] | None) -> list[_Object]:
    """The objects of a pickle [clouds, labels], in its order, which is the list's.

    Raises:
        ValueError: another content, or a list of another length.
    """
    if len(stored.rows) != 2 or len(stored.rows[0]) != len(stored.rows[1]):
        raise ValueError(
            f"{stored.path}: must hold a list of clouds and as many labels, got lists of {[len(row) for row in stored.rows]!s:.80}"
        )
    clouds, labels = stored.rows
    if names is not None and len(names) != len(clouds):
        raise ValueError(
            f"{stored.path}: has {len(clouds):,} objects, but {_list(split)} beside it names {len(names):,}; remove the list"
        )
    names = [f"{split}_{k:04d}" for k in range(len(clouds))] if names is None else names
    return [_Object(*parts) for parts in zip(names, clouds, labels, strict=True)]


def _collect(conversion: Conversion, objects: list[_Object], named: bool) -> list[_Object]:
    """Those whose names, where a list gives them, are of a class and stand there once."""
    seen: set[str] = set()
    kept = []
    for item in objects:
        problem = None
        if named and _class_of(item.name) is None:
            problem = Reason.MALFORMED_ROW, f"{item.name!r:.80} must be a class and a number, such as chair_0001"
        elif item.name in seen:
            problem = Reason.DUPLICATE_SOURCE, "this name came before in its list"
        if problem is None:
            seen.add(item.name)
            kept.append(item)
        else:
            conversion.tally.read += 1
            conversion.reject(f"{NAME}/{item.name}", *problem)
    return kept


def _class_of(name: str) -> str | None:
    """The class in ``<class>_0001``; none where there is none."""
    found = _OBJECT.fullmatch(name)
    words = found[1].replace("_", " ") if found else ""
    return words if words in CLASSES else None


def _read(stored: ArrayPickle | None, item: _Object, min_points: int) -> tuple[str, NDArray[np.float32]]:
    """(class, points [N, 3]) of an object."""
    if isinstance(item.place, Path):
        return _class_of(item.name) or "", _points(_text(item.place), str(item.place), min_points)
    assert stored is not None
    assert item.label is not None
    where = f"{stored.path}, {item.name}"
    try:
        label, points = stored.read(item.label), stored.read(item.place)
    except (ValueError, OSError) as error:
        raise RejectedError(Reason.POINTS_UNREADABLE, f"{where}: {error}") from None
    if label.size != 1 or label.dtype.kind not in "iu" or not 0 <= int(label.flat[0]) < len(CLASSES):
        raise RejectedError(Reason.MALFORMED_ROW, f"{where}: its label must be one number from 0 to {len(CLASSES) - 1}")
    name = CLASSES[int(label.flat[0])]
    if _class_of(item.name) not in (None, name):
        raise RejectedError(
            Reason.UNKNOWN_OBJECT, f"{where}: its label says {name}; the list beside it is of other objects"
        )
    return name, _points(points, where, min_points)


def _text(path: Path) -> NDArray[np.float64]:
    """The table in a text file."""
    from rb.sources.cloud_files import text_table  # loads torch, which parsers need not wait for
    from rb.sources.points import PointsError

    try:
        if path.stat().st_size > MAX_BYTES:
            raise RejectedError(Reason.POINTS_UNREADABLE, f"{path}: more than {MAX_BYTES:,} bytes")
        return text_table(path.read_bytes(), str(path))
    except OSError as error:
        raise RejectedError(Reason.POINTS_MISSING, f"{path}: {error.strerror or error}") from None
    except PointsError as error:
        raise RejectedError(Reason.POINTS_UNREADABLE, str(error)) from None


def _points(table: NDArray[Any], where: str, min_points: int) -> NDArray[np.float32]:
    """The coordinates of a table [N, 3 | 6] that can be used."""
    if table.ndim != 2 or table.shape[1] not in (3, 6) or table.dtype.kind != "f":
        raise RejectedError(
            Reason.POINTS_UNREADABLE,
            f"{where}: must be [N, 6], points and normals, or [N, 3], got {list(table.shape)} of {table.dtype}",
        )
    return usable_cloud(table[:, :3], where, min_points)


def _write(
    conversion: Conversion, item: _Object, content: tuple[str, NDArray[np.float32]] | RejectedError, split: str
) -> None:
    from rb.sources.points import EXTENSION, encode_points  # loads torch, which parsers need not wait for

    conversion.tally.read += 1
    source = f"{NAME}/{item.name}"
    if isinstance(content, RejectedError):
        conversion.reject(source, content.reason, content.detail)
        return
    name, points = content
    conversion.write(Record(source, NAME, split, 0, 0, [name]), encode_points(points), EXTENSION, 1, 1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``rb prepare modelnet40``."""
    which = "read the pickles or the text files (default: the pickle of a split where it is there)"
    parser.add_argument("--layout", choices=LAYOUTS, help=which)
    less = f"reject clouds of fewer points (default: {DEFAULT_MIN_POINTS:,})"
    parser.add_argument("--min-points", type=int, default=DEFAULT_MIN_POINTS, help=less)
