"""Reading WebDataset tars without trusting them: the byte range and the members of every record. Nothing is ever extracted.

Used when shards are indexed (`shards.py`) and when a record is read (`index.py`). A key is only compared, never made into a path.
Python's reader believes what a header says of itself; `_members` holds it to bounds, so that a small file costs little memory and time.
"""

from __future__ import annotations

import io
import re
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from rb.core.strict_json import FormatError
from rb.data.formats import MAX_RECORD_BYTES, RECORD_EXTENSION, Record, parse_record
from rb.sources import features, groups
from rb.sources.table import media_extensions

_END_OF_ARCHIVE = 2 * tarfile.BLOCKSIZE
_MAX_HEADER_BYTES = 1 << 16  # of a pax or long-name header; a path has at most 4 KiB
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}
_DIGITS = re.compile(rb"\d{33}")  # Python's search in pax headers takes quadratic time over digits (CVE-2024-6232)
# What Python's reader raises for damaged headers; it documents only the first.
_DAMAGE = (
    tarfile.TarError,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
    RecursionError,
    MemoryError,
    struct.error,
)


@dataclass(frozen=True)
class FoundRecord:
    """One record of a shard: where its bytes start, the bytes themselves (headers and padding too), and what they say."""

    offset: int
    data: bytes
    record: Record
    media: bytes
    extension: str
    groups: bytes | None
    where: str


def split_key(name: str, where: str) -> tuple[str, str]:
    """A member's name as (key, extension): at the first dot of its last part, as WebDataset splits it.

    Where that gives no extension that a record can have, at the dot before one: ``photo.v2.jpg`` is a member of ``photo.v2``.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise FormatError(
            f"{where}: member name {name!r} leads outside the archive; this is not a shard of ours, do not use it"
        )
    base, dot, extension = path.name.partition(".")
    if not (base and dot and extension):
        raise FormatError(f"{where}: member name {name!r} is not KEY.EXTENSION")
    known = _extensions()
    if extension.lower() not in known:
        longest = max((end for end in known if path.name.lower().endswith(f".{end}")), key=len, default=extension)
        base, extension = path.name[: -len(longest) - 1], longest
    return str(path.parent / base), extension.lower()


def packed_along(member: tarfile.TarInfo) -> bool:
    """Whether a member is what packing adds and WebDataset skips too: folders, macOS's own files, WebDataset's ``__NAME__``."""
    path = PurePosixPath(member.name)
    own = path.name.startswith("._") or path.name == ".DS_Store" or "__MACOSX" in path.parts
    return member.isdir() or own or (path.name.startswith("__") and path.name.endswith("__"))


def other_kind(member: tarfile.TarInfo) -> str | None:
    """What a member is in place of a plain file, such as a link; none where it is one."""
    if member.sparse is not None:
        return "a sparse file"
    return None if member.isreg() else _KINDS.get(member.type, f"of type {member.type!r}")


def _checked_member(member: tarfile.TarInfo, where: str) -> tuple[str, str] | None:
    """Key and extension of a file that belongs to a record; none for what packing adds."""
    if packed_along(member):
        return None
    kind = other_kind(member)
    if kind is not None:
        raise FormatError(
            f"{where}: member {member.name!r} is not a plain file but {kind}; pack the shard again "
            "(`tar --dereference --hard-dereference` stores what links lead to)"
        )
    return split_key(member.name, where)


class _Headers:
    """The file as Python's reader sees it while it reads headers only: no single read is larger than a header can be."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        """``size`` bytes; ``ReadError`` where only an attack asks for so many, or for such ones."""
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {size:,} bytes for a name or its settings")
        data = self._file.read(size)
        if size > tarfile.BLOCKSIZE and _DIGITS.search(data):
            raise tarfile.ReadError("a header holds a number of more than 32 digits")
        return data


def tar_headers(file: BinaryIO, where: str) -> Iterator[tarfile.TarInfo]:
    """Every member of a tar, in order; reads headers only.

    Raises:
        FormatError: no plain tar, headers that lie (sizes, chains, ranges that do not follow each other).
    """
    try:
        with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:  # type: ignore[call-overload]
            behind = 0
            while (member := tar.next()) is not None:
                if member.size < 0 or member.offset_data < behind or tar.offset < member.offset_data:
                    raise tarfile.ReadError(f"the header at byte {member.offset} claims {member.size} bytes")
                behind = tar.offset
                # tarfile keeps every header it saw; a shard may hold a hundred thousand.
                tar.members = []
                yield member
    except FormatError:
        raise
    except _DAMAGE as error:
        raise FormatError(
            f"{where}: not a plain, complete tar ({str(error) or type(error).__name__}); compressed tars must be unpacked first"
        ) from None


# A header as webdataset's writer makes it: fields of octal digits, an own checksum, ustar, no link, no device, no long name.
_NUMBERS = re.compile(rb"[0-7]{7}\0[0-7]{7}\0[0-7]{7}\0([0-7]{11})\0[0-7]{11}\0([0-7]{6})\0 ([0x])")
_NO_LINK, _NO_DEVICE = bytes(100) + b"ustar\00000", bytes(183)
_PLAIN_NAME = re.compile(rb"([A-Za-z0-9][A-Za-z0-9_-]*)\.([a-z.]+)\0*")
_PAX_NAME = b"././@PaxHeader".ljust(100, b"\0")
_PAX_MTIME = b"13 mtime=0.0\n".ljust(tarfile.BLOCKSIZE, b"\0")  # says nothing that is asked for here


def _plain_members(data: bytes) -> list[tuple[str, str, int, int]] | None:
    """(key, extension, first byte, size) of every member of a byte range in which all headers are as webdataset's writer makes them; else none.

    Python's reader gives the same, and takes eight times as long: a tenth of the time in which a picture is read and decoded.
    """
    block, found, place, has_pax = tarfile.BLOCKSIZE, list[tuple[str, str, int, int]](), 0, False
    extensions = _extensions()
    while place < len(data):
        header = data[place : place + block]
        numbers = _NUMBERS.fullmatch(header, 100, 157)
        if numbers is None or header[157:265] != _NO_LINK or header[329:] != _NO_DEVICE:
            return None
        if sum(header) - sum(header[148:156]) + 8 * ord(" ") != int(numbers[2], 8):
            return None
        size, start = int(numbers[1], 8), place + block
        place = start + -(-size // block) * block
        if place > len(data):
            return None
        if numbers[3] == tarfile.XHDTYPE:
            if has_pax or header[:100] != _PAX_NAME or data[start:place] != _PAX_MTIME:
                return None
            has_pax = True
            continue
        has_pax = False
        name = _PLAIN_NAME.fullmatch(header, 0, 100)
        if name is None or name[2].decode() not in extensions:
            return None
        found.append((name[1].decode(), name[2].decode(), start, size))
    return found if found and not has_pax else None


def _extensions() -> tuple[str, ...]:
    """Of the members that a record can have: the two that stand beside media, then those of media."""
    return RECORD_EXTENSION, groups.EXTENSION, *media_extensions(), features.EXTENSION


def behind(member: tarfile.TarInfo) -> int:
    """The first byte behind a member's blocks."""
    return member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _members(file: BinaryIO, where: str) -> Iterator[tuple[tarfile.TarInfo, str, str]]:
    """Every member of a shard with its key and extension. ``FormatError`` as of ``tar_headers``, ``split_key`` and ``_checked_member``."""
    for member in tar_headers(file, where):
        found = _checked_member(member, where)
        if found is not None:
            yield member, *found


def split_members(data: bytes, where: str) -> tuple[Record, bytes, str, bytes | None]:
    """A record's byte range to (record, media bytes, media extension, groups of its points or none); ``FormatError`` if it holds anything else."""
    members: dict[str, bytes] = {}
    keys: set[str] = set()
    plain = _plain_members(data)
    if plain is None:
        found = _members(io.BytesIO(data), where)
        plain = [(key, extension, member.offset_data, member.size) for member, key, extension in found]
    for key, extension, start, size in plain:
        keys.add(key)
        if extension in members:
            raise FormatError(f"{where}: has two members {extension!r}")
        members[extension] = data[start : start + size]
    if len(keys) != 1:
        raise FormatError(f"{where}: holds {len(keys)} keys, a record has one")
    media = [extension for extension in members if extension not in (RECORD_EXTENSION, groups.EXTENSION)]
    if RECORD_EXTENSION not in members or len(media) != 1 or media[0] not in _extensions():
        raise FormatError(
            f"{where}: key {keys.pop()!r} has members {sorted(members)}; a record is KEY.json and one of {', '.join(_extensions()[2:])}"
        )
    return parse_record(members[RECORD_EXTENSION], where), members[media[0]], media[0], members.get(groups.EXTENSION)


def scan_shard(path: Path) -> Iterator[FoundRecord]:
    """Every record of a tar, in order.

    Raises:
        FormatError: a member that is not a plain file or not part of a record, members of one key apart from each other, a tar that ends
            early or holds more after its end (Python's reader, and WebDataset's, silently stop at a damaged header).
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        done: set[str] = set()
        end = 0
        for key, start, end in _key_ranges(file, str(path)):
            if key in done:
                raise FormatError(_apart(path, key))
            done.add(key)
            where = f"{path}: key {key!r} at byte {start}"
            if end > size:
                raise FormatError(f"{where}: claims to end at byte {end} of {size}; the shard is cut or damaged")
            if end - start > MAX_RECORD_BYTES:
                raise FormatError(
                    f"{where}: has {end - start:,} bytes, a record at most {MAX_RECORD_BYTES:,}; shrink its image or cloud"
                )
            file.seek(start)
            data = file.read(end - start)
            try:
                parts = split_members(data, where)
            except FormatError:
                with path.open("rb") as again:
                    apart = sum(other == key for other, _, _ in _key_ranges(again, str(path))) > 1
                if apart:
                    raise FormatError(_apart(path, key)) from None
                raise
            yield FoundRecord(start, data, *parts, where)
        file.seek(end)
        zeros = 0
        while piece := file.read(1 << 20):
            if piece.strip(b"\0"):
                raise FormatError(
                    f"{path}: damaged at byte {end + zeros} or later, the records behind are out of reach; bring the shard back"
                )
            zeros += len(piece)
        if zeros < _END_OF_ARCHIVE:
            raise FormatError(f"{path}: ends without tar's end mark, so it was cut; bring the shard back")


def _apart(path: Path, key: str) -> str:
    return (
        f"{path}: the members of key {key!r} are not next to each other (a record is KEY.json and one of {', '.join(media_extensions())}); "
        "pack the shard again, sorted: unpack it into an empty folder DIR and run `tar --sort=name -cf NEW.tar -C DIR .`"
    )


def _key_ranges(file: BinaryIO, where: str) -> Iterator[tuple[str, int, int]]:
    """(key, first byte, byte behind the last block) of every run of members with one key. The file's position is free between two."""
    current, start, end = None, 0, 0
    for member, key, _ in _members(file, where):
        if key != current:
            if current is not None:
                yield current, start, end
            current, start = key, member.offset
        end = behind(member)
    if current is None:
        raise FormatError(f"{where}: holds no record")
    yield current, start, end
