"""What all converters share: reasons, the count of what was read, used and rejected, reading JSON and text, safe paths, checked images.

Knows no data set; each has its own file beside this one.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

from rb.core import progress
from rb.core.strict_json import FormatError, parse_foreign, read_bytes
from rb.core.text import is_caption, one_line, shown
from rb.core.threads import in_order
from rb.data.formats import MAX_RECORD_BYTES, Record, UnfitRecordError
from rb.data.prepare.raw_text import read_text
from rb.sources.pixels import EXIF_CHOICES, ImageError, OrientationError, decode_image, size_in_set

if TYPE_CHECKING:
    from rb.data.shard_writer import SetWriter

_LONGEST_NAME, _LONGEST_PATH = 255, 3000  # bytes, letters; for longer ones the system has errors, not answers
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Reason:
    """The reasons in rejected.jsonl. All reject an item, but EMPTY_CAPTION, one caption of an item that has others, and PROPOSAL_UNUSABLE."""

    ANNOTATION_OF_OTHER_IMAGE = "annotation_of_other_image"
    BOXES_MISSING = "boxes_missing"
    BOXES_UNREADABLE = "boxes_unreadable"
    BOX_EMPTY = "box_empty"
    BOX_OUTSIDE_CLOUD = "box_outside_cloud"
    BOX_WITHOUT_POINTS = "box_without_points"
    BOX_OUTSIDE_IMAGE = "box_outside_image"
    COLOURS_UNCLEAR = "colours_unclear"
    DUPLICATE_QUESTION = "duplicate_question"
    DUPLICATE_SOURCE = "duplicate_source"
    EMPTY_CAPTION = "empty_caption"
    EXIF_ORIENTATION = "exif_orientation"
    IMAGE_MISSING = "image_missing"
    IMAGE_SIZE_MISMATCH = "image_size_mismatch"
    MALFORMED_ROW = "malformed_row"
    NO_ANSWER = "no_answer"
    NO_CAPTION = "no_caption"
    NO_PROPOSAL = "no_proposal"
    POINTS_DEGENERATE = "points_degenerate"
    POINTS_MISSING = "points_missing"
    POINTS_NOT_FINITE = "points_not_finite"
    POINTS_UNREADABLE = "points_unreadable"
    PROPOSAL_UNUSABLE = "proposal_unusable"
    RECORD_UNFIT = "record_unfit"
    REVIEWED_AS_WRONG = "reviewed_as_wrong"
    SCENE_NOT_ALIGNED = "scene_not_aligned"
    SHARED_IMAGE = "shared_image"
    SHARED_SOURCE = "shared_source"
    TOO_FEW_POINTS = "too_few_points"
    UNKNOWN_ANNOTATION = "unknown_annotation"
    UNKNOWN_IMAGE = "unknown_image"
    UNKNOWN_OBJECT = "unknown_object"
    UNREADABLE_IMAGE = "unreadable_image"
    UNSAFE_NAME = "unsafe_name"


class RejectedError(Exception):
    """An item that cannot be used: ``reason`` is one of ``Reason``, ``detail`` a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass
class Tally:
    """The count of one conversion. An item (image, reference, object) is either used or rejected, so read = used + rejected."""

    unit: str
    read: int = 0
    used: int = 0
    captions: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def counts(self) -> dict[str, Any]:
        """All counts, for JSON; `restore` takes them back."""
        return {
            "read": self.read,
            "used": self.used,
            "captions": self.captions,
            "rejected": dict(sorted(self.rejected.items())),
            "notes": dict(sorted(self.notes.items())),
        }

    def restore(self, counts: Mapping[str, Any]) -> None:
        """The counts of an earlier process, in place of what was counted so far."""
        self.read, self.used, self.captions = (counts[name] for name in ("read", "used", "captions"))
        for mine, stored in ((self.rejected, counts["rejected"]), (self.notes, counts["notes"])):
            mine.clear()
            mine.update(stored)

    def table(self, title: str) -> str:
        """The counts as lines for people."""
        rows = [(f"{self.unit} read", self.read), ("used", self.used), ("rejected", sum(self.rejected.values()))]
        rows += [(f"  {reason}", count) for reason, count in sorted(self.rejected.items())]
        rows += [("captions", self.captions), *sorted(self.notes.items())]
        width = max(len(name) for name, _ in rows)
        return "\n".join([title, *(f"  {name:<{width}}  {count:>9,}" for name, count in rows)])


class Conversion:
    """One conversion under way: passes records and rejects on to the shards, and counts them."""

    def __init__(self, writer: SetWriter, unit: str, notes: Counter[str] | None = None) -> None:
        self.writer = writer
        self.tally = Tally(unit, notes=Counter() if notes is None else notes)
        self.first_details: list[str] = []  # of the first rejected items, for an error about too many of them

    def holds(self, source: str) -> bool:
        """Whether a record of this source was written already."""
        return self.writer.holds(source)

    def reject(self, source: str, reason: str, detail: str, object_id: str | None = None) -> None:
        """One item that is not used."""
        self.writer.reject(shown(source), reason, one_line(detail), None if object_id is None else shown(object_id))
        self.tally.rejected[reason] += 1
        if len(self.first_details) < 3:
            self.first_details.append(one_line(detail))

    def captions(self, source: str, raw: Sequence[object], object_id: str | None = None) -> list[str]:
        """``raw`` on one line each; what is no caption (`rb.core.text.is_caption`) is left out, and listed unless all are.

        Raises:
            RejectedError: no_caption, nothing is left.
        """
        kept = [one_line(text) for text in raw if isinstance(text, str) and is_caption(text)]
        if not kept:
            found = f"none of {list(raw)!a:.100} is a caption" if raw else "no caption"
            raise RejectedError(Reason.NO_CAPTION, found)
        for text in raw if len(kept) < len(raw) else ():
            if not (isinstance(text, str) and is_caption(text)):
                self.writer.reject(shown(source), Reason.EMPTY_CAPTION, f"{text!a:.100} is no caption", object_id)
                self.tally.notes["empty captions left out"] += 1
        return kept

    def write(self, record: Record, media: bytes, extension: str, items: int, captions: int) -> bool:
        """One record of ``items`` with so many captions; false where it is more than a record can hold, and its items are rejected."""
        try:
            self.writer.write(record, media, extension)
        except UnfitRecordError as error:
            for _ in range(items):
                self.reject(record.source_id, Reason.RECORD_UNFIT, str(error))
            return False
        self.tally.used += items
        self.tally.captions += captions
        return True

    def finish(self) -> Tally:
        """The counts, which must add up."""
        tally = self.tally
        assert tally.read == tally.used + sum(tally.rejected.values()), tally
        return tally


def require_raw(path: Path, layout: str) -> Path:
    """``path`` if it exists; else a ``ValueError`` that names it and shows how the folder should look."""
    if not path.exists():
        raise ValueError(f"{path}: not found. The raw folder should look like this:\n{layout}")
    return path


def find_raw(raw: Path, places: Sequence[str], layout: str) -> Path:
    """The first of ``places`` inside ``raw`` that exists; else a ``ValueError`` that names them and shows how the folder should look."""
    paths = [raw / place for place in places]
    found = next((path for path in paths if path.exists()), None)
    if found is None:
        raise ValueError(f"{', '.join(map(str, paths))}: not found. The raw folder should look like this:\n{layout}")
    return found


def read_json(path: Path, fields: frozenset[str], notes: Counter[str], remedy: str = "download it again") -> Any:
    """A large JSON file with only ``fields`` of its objects kept while it is read: polygons and token lists never fill the memory.

    Raises:
        ValueError: no JSON, named by file, with ``remedy``.
    """
    return parse_foreign(read_text(path, notes), str(path), fields, remedy)


def objects_of(value: object, where: str) -> list[dict[str, Any]]:
    """``value`` if it is a list of JSON objects; else a ``ValueError`` that says where they should be."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"{where}: must be a list of objects; this is another file than the one the data set ships")
    return value


def is_id(value: object) -> TypeGuard[int]:
    """Whether ``value`` can be a data set's running number."""
    return isinstance(value, int) and not isinstance(value, bool)


def safe_path(root: Path, *parts: object) -> Path:
    """``root`` with parts that a file of the data set names. ``RejectedError`` where they would leave ``root``.

    Links inside ``root`` are the user's own and are followed.
    """
    if not all(isinstance(part, str) for part in parts):
        raise RejectedError(Reason.UNSAFE_NAME, f"a file name must be a text, got {parts!r:.80}")
    relative = PurePosixPath(*(str(part) for part in parts))
    too_long = any(len(part.encode("utf-8", "replace")) > _LONGEST_NAME for part in relative.parts)
    bad = (
        relative.is_absolute()
        or ".." in relative.parts
        or not parts[-1]
        or too_long
        or len(str(relative)) > _LONGEST_PATH
    )
    if bad or not str(relative).isprintable() or "\\" in str(relative):
        raise RejectedError(
            Reason.UNSAFE_NAME,
            f"{str(relative)!r:.200} names no file below {root}: it must be relative to that folder, with / between folders, without .. and of names that a disk takes",
        )
    return root / relative


def plain_path(path: str) -> str:
    """One spelling for one path: ``a/b`` also of ``./a//b/``, so that one file has one source id."""
    odd = "//" in path or "./" in path or path.endswith(("/", "/."))
    return str(PurePosixPath(path)) if odd else path


def read_file(path: Path, missing: str) -> bytes:
    """The bytes of ``path``; ``RejectedError`` with reason ``missing`` where it cannot be read."""
    try:
        return read_bytes(path, MAX_RECORD_BYTES)
    except OSError as error:
        raise RejectedError(missing, f"{path}: {error.strerror or error}") from None
    except FormatError as error:
        raise RejectedError(missing, str(error)) from None


@dataclass(frozen=True)
class CheckedImage:
    """An image that decodes: its original bytes, the extension that fits them, its size in pixels: as stored, or upright if told so."""

    data: bytes
    extension: str
    width: int
    height: int


def add_exif(parser: argparse.ArgumentParser) -> None:
    """The option ``--exif`` of every command that makes a set of images."""
    parser.add_argument(
        "--exif",
        choices=EXIF_CHOICES,
        help="which pixels sizes and boxes refer to in images with an EXIF orientation (default: such images are refused)",
    )


def read_image(path: Path, exif: str | None = None) -> CheckedImage:
    """An image, decoded in full once to know that it can be; ``exif`` as of `rb.data.shard_writer.ShardWriter`.

    Raises:
        RejectedError: it is missing, cannot be decoded, or has an EXIF orientation of which ``exif`` says nothing.
    """
    return check_image(read_file(path, Reason.IMAGE_MISSING), str(path), exif)


def check_image(data: bytes, where: str, exif: str | None = None) -> CheckedImage:
    """As ``read_image``, for the bytes of an image file."""
    try:
        decode_image(data, where)
        width, height = size_in_set(data, where, exif)
    except OrientationError as error:
        raise RejectedError(Reason.EXIF_ORIENTATION, str(error)) from None
    except ImageError as error:
        raise RejectedError(Reason.UNREADABLE_IMAGE, str(error)) from None
    # By content: some files of COCO are PNGs under a name that ends in jpg.
    extension = "png" if data.startswith(b"\x89PNG") else "webp" if data.startswith(b"RIFF") else "jpg"
    return CheckedImage(data, extension, width, height)


def attempt(
    work: Callable[[_Item], _Result], items: Iterable[_Item], total: int, title: str, workers: int, done: int = 0
) -> Iterator[tuple[_Item, _Result | RejectedError]]:
    """``work`` on every item by threads, in order, a few ahead only; a rejection is handed back in place of the result.

    Args:
        total: of all items; ``done`` of them were done earlier and are not in ``items``.
    """

    def one(item: _Item) -> _Result | RejectedError:
        try:
            return work(item)
        except RejectedError as error:
            return error

    with progress.bar(total=total, initial=done, desc=title, delay=5) as bar:
        for item, result in in_order(one, items, workers, ahead=4 * workers):
            yield item, result
            bar.update()
