"""Tars of images with their captions, as img2dataset and WebDataset pack them: ``KEY.jpg`` with ``KEY.txt``, ``KEY.json`` or both. Used by `custom.py` and `rb/mining`.

The headers are read once, to know where each sample lies and which split its key falls into: 16 bytes of memory a sample. A sample is read
when its turn comes, so that no more than a few are in memory. Nothing is extracted.
"""

from __future__ import annotations

import io
import itertools
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from rb.core.strict_json import FormatError, parse_foreign
from rb.data.formats import MAX_RECORD_BYTES
from rb.data.prepare.columns import Columns, box_of, find_columns
from rb.data.prepare.common import CheckedImage, Reason, RejectedError, check_image
from rb.data.prepare.custom_records import Item, split_of
from rb.data.prepare.plan import Items
from rb.data.tars import behind, other_kind, packed_along, tar_headers

_IMAGES = ("jpg", "jpeg", "png", "webp")
_TEXT, _FIELDS = "txt", "json"
_KEY = "__key__"  # WebDataset's name of it
_ASKED = 20  # samples whose fields are shown and may be named
_MAX_TEXT = 1 << 20  # of a caption or the JSON beside it


@dataclass(frozen=True)
class Place:
    """Where a sample lies: the bytes of its members, headers too."""

    tar: Path
    start: int
    length: int

    def __str__(self) -> str:
        return f"{self.tar.name} at byte {self.start}"


class Places(Items[Place]):
    """The places of many samples, in order."""

    def __init__(self, tars: Sequence[Path]) -> None:
        self._tars = tars
        self._numbers, self._starts, self._lengths = array("I"), array("Q"), array("I")

    def add(self, number: int, start: int, length: int) -> None:
        """A sample of the tar with this number; what is longer than a record can be is refused when it is read."""
        self._numbers.append(number)
        self._starts.append(start)
        self._lengths.append(min(length, MAX_RECORD_BYTES + 1))

    def __len__(self) -> int:
        return len(self._starts)

    def item(self, number: int) -> Place:
        """As of ``Items``."""
        return Place(self._tars[self._numbers[number]], self._starts[number], self._lengths[number])


@dataclass(frozen=True)
class Run:
    """A sample as the headers of a tar give it: members of one key, one after another.

    Attributes:
        start, length: of all its bytes, headers too.
        members: (extension, first byte, size) of each.
    """

    key: str
    start: int
    length: int
    members: list[tuple[str, int, int]]

    def read(self, file: BinaryIO) -> dict[str, bytes]:
        """The members' bytes by extension. ``RejectedError``: larger than a record can be, two of an extension."""
        if self.length > MAX_RECORD_BYTES:
            raise RejectedError(Reason.MALFORMED_ROW, f"key {self.key!a:.100}: more than {MAX_RECORD_BYTES:,} bytes")
        found: dict[str, bytes] = {}
        for extension, first, size in self.members:
            if extension in found:
                raise RejectedError(Reason.MALFORMED_ROW, f"key {self.key!a:.100}: has two members {extension!r}")
            file.seek(first)
            found[extension] = file.read(size)
        return found


@dataclass(frozen=True)
class Sample:
    """One sample as read."""

    key: str
    items: list[Item]
    image: CheckedImage | RejectedError


@dataclass
class FoundTars:
    """What the headers say: per split the samples, and the tars that end early."""

    splits: dict[str, Places]
    bad: list[tuple[str, str]]
    notes: Counter[str]

    @property
    def samples(self) -> int:
        """In all splits."""
        return sum(map(len, self.splits.values()))


def find_tars(patterns: Sequence[str]) -> list[Path]:
    """The tars that patterns, files or folders name, in order. ``ValueError`` names a pattern without one."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        pattern_here = path / "*.tar" if path.is_dir() else path
        start = pattern_here.anchor
        paths = [path] if path.is_file() else sorted(Path(start or ".").glob(str(pattern_here.relative_to(start))))
        if not paths:
            raise ValueError(
                f"--tars {pattern}: no such tar; give files, a folder of .tar, or a pattern such as 'DIR/*.tar'"
            )
        found.update(dict.fromkeys(paths))
    return list(found)


def find_samples(tars: Sequence[Path], shares: dict[str, float]) -> FoundTars:
    """Where the samples of all tars lie, by split. Only headers are read; a tar that is cut gives the samples before the cut."""
    found = FoundTars({}, [], Counter())
    for number, path in enumerate(tars):
        try:
            with path.open("rb") as file:
                for run in runs_in(file, path, found.notes):
                    split = split_of(run.key, shares)
                    found.splits.setdefault(split, Places(tars)).add(number, run.start, run.length)
        except FormatError as error:
            found.bad.append((path.name, str(error).removeprefix(f"{path}: ")))
    return found


def runs_in(file: BinaryIO, path: Path, notes: Counter[str]) -> Iterator[Run]:
    """Every run of members with one key. The file's position is free between two."""
    key, start, end, members = "", 0, 0, list[tuple[str, int, int]]()
    size = path.stat().st_size
    for member in tar_headers(file, str(path)):
        if packed_along(member):
            continue
        name = None if other_kind(member) else key_of(member.name)
        if name is None:
            notes["members that are no image, text or JSON"] += 1
            continue
        if members and name[0] != key:
            yield Run(key, start, end - start, members)
            members = []
        if behind(member) > size:
            raise FormatError(f"ends at byte {size}, inside {member.name!a:.100}; download it again")
        if not members:
            key, start = name[0], member.offset
        members.append((name[1], member.offset_data, member.size))
        end = behind(member)
    if not members:
        raise FormatError("holds no image with a caption; members are KEY.jpg and KEY.txt or KEY.json")
    yield Run(key, start, end - start, members)


def key_of(name: str) -> tuple[str, str] | None:
    """A member's (key, extension), if it is a part of a sample: at the last dot, and without leading ``./``."""
    path = PurePosixPath(name)
    extension = path.suffix[1:].lower()
    if path.is_absolute() or ".." in path.parts or extension not in (*_IMAGES, _TEXT, _FIELDS):
        return None
    return str(path.with_suffix("")), extension


def columns_of_tars(found: FoundTars, told: dict[str, str], where: str) -> tuple[Columns, list[str]]:
    """Which field of a sample is what, and all fields: the caption is its text, unless it has none or another is told; boxes are only told.

    Raises:
        ValueError: a field that is not there, no caption.
    """
    names: dict[str, None] = {}
    for place in itertools.islice(itertools.chain.from_iterable(found.splits.values()), _ASKED):
        try:
            names.update(dict.fromkeys(_fields(members_of(place)[1])))
        except RejectedError:
            continue
    if "split" in told or "file" in told:
        raise ValueError("--column: a sample of a tar is named by its key, and its split is drawn by --val and --test")
    usual = {"file": _KEY, "caption": _TEXT} if _TEXT in names else {"file": _KEY}
    columns = replace(find_columns([_KEY, *names], usual | told, where), split=None)
    return columns if "box" in told else replace(columns, box=(), form=None, object=None), list(names)


def read_sample(place: Place, columns: Columns, exif: str | None) -> Sample:
    """A sample's items and its image.

    Raises:
        RejectedError: too large, damaged, without captions that can be read.
    """
    key, members = members_of(place)
    where = f"{place.tar.name}, key {key!a:.100}"
    try:
        row = _fields(members)
    except RejectedError as error:
        raise RejectedError(error.reason, f"{where}: {error.detail}") from None
    extension = next((extension for extension in _IMAGES if extension in members), None)
    if extension is None:
        image: CheckedImage | RejectedError = RejectedError(Reason.IMAGE_MISSING, "has no .jpg, .png or .webp")
    else:
        try:
            image = check_image(members[extension], f"{key}.{extension}", exif)
        except RejectedError as error:
            image = error
    return Sample(key, list(_items(row, columns, where)), image)


def _items(row: dict[str, Any], columns: Columns, where: str) -> Iterator[Item]:
    """The captions of the whole, or each box with its own: one box, or lists of boxes and captions."""
    caption = row.get(columns.caption)
    if not columns.box:
        yield Item(where, caption)
        return
    value = row.get(columns.box[0])
    if not (len(columns.box) == 1 and isinstance(value, list) and value and isinstance(value[0], list)):
        value, caption = [value], [caption]
    objects = row.get(columns.object) if columns.object else None
    ids = objects if isinstance(objects, list) else [objects] * len(value)
    if not isinstance(caption, list) or not len(caption) == len(value) == len(ids):
        raise RejectedError(Reason.MALFORMED_ROW, f"{where}: {len(value)} boxes need a caption each")
    for box, text, object_id in zip(value, caption, ids, strict=True):
        try:
            numbers = box_of(row if len(columns.box) > 1 else {columns.box[0]: box}, columns)
        except ValueError as error:
            raise RejectedError(Reason.MALFORMED_ROW, f"{where}: {error}") from None
        yield Item(where, text, numbers, None if object_id is None else str(object_id))


def members_of(place: Place) -> tuple[str, dict[str, bytes]]:
    """(key, bytes by extension) of a sample."""
    if place.length > MAX_RECORD_BYTES:
        raise RejectedError(Reason.MALFORMED_ROW, f"{place}: more than {MAX_RECORD_BYTES:,} bytes")
    with place.tar.open("rb") as file:
        file.seek(place.start)
        data = file.read(place.length)
    key, members = "", {}
    try:
        for member in tar_headers(io.BytesIO(data), str(place)):
            name = None if other_kind(member) else key_of(member.name)
            if name is not None:
                key, extension = name
                if extension in members:
                    raise FormatError(f"{place}: has two members {member.name!a:.100}")
                members[extension] = data[member.offset_data : member.offset_data + member.size]
    except FormatError as error:
        raise RejectedError(Reason.MALFORMED_ROW, str(error)) from None
    return key, members


def _fields(members: dict[str, bytes]) -> dict[str, Any]:
    """The JSON of a sample, and its text as the field ``txt``."""
    row: dict[str, Any] = {}
    for extension in (_FIELDS, _TEXT):
        data = members.get(extension, b"")
        if len(data) > _MAX_TEXT:
            raise RejectedError(
                Reason.MALFORMED_ROW, f"its {extension} has {len(data):,} bytes, more than {_MAX_TEXT:,}"
            )
        try:
            text = data.decode("utf-8-sig")
            if extension == _TEXT and extension in members:
                row[_TEXT] = text
            elif extension in members:
                found = parse_foreign(text, "its json", remedy="correct it")
                if not isinstance(found, dict):
                    raise ValueError("its json is not an object")
                row.update(found)
        except ValueError as error:
            raise RejectedError(Reason.MALFORMED_ROW, str(error)) from None
    return row
