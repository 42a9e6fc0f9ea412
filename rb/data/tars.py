"""Reading WebDataset tars without trusting them: the byte range and the members of every record. Nothing is ever extracted.

Used when shards are indexed (`shards.py`) and when a record is read (`index.py`). A key is only compared, never made into a path.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rb.core.strict_json import FormatError
from rb.data.formats import RECORD_EXTENSION, Record, parse_record
from rb.sources.table import media_extensions

_END_OF_ARCHIVE = 2 * tarfile.BLOCKSIZE
_MAX_RECORD_BYTES = 1 << 30  # one record is one image or cloud; a larger claim is damage or an attack on memory


@dataclass(frozen=True)
class FoundRecord:
    """One record of a shard: where its bytes start, the bytes themselves (headers and padding too), and what they say."""

    offset: int
    data: bytes
    record: Record
    media: bytes
    extension: str
    where: str


def split_key(name: str, where: str) -> tuple[str, str]:
    """A member's name as WebDataset splits it: (key, extension), at the first dot of the last part."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise FormatError(
            f"{where}: member name {name!r} leads outside the archive; this is not a shard of ours, do not use it"
        )
    base, dot, extension = path.name.partition(".")
    if not (base and dot and extension):
        raise FormatError(f"{where}: member name {name!r} is not KEY.EXTENSION")
    return str(path.parent / base), extension.lower()


def _checked_member(member: tarfile.TarInfo, where: str) -> tuple[str, str]:
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.sparse is not None:
        raise FormatError(
            f"{where}: member {member.name!r} is not a plain file (link, folder, device or sparse file); pack the shard again"
        )
    return split_key(member.name, where)


def split_members(data: bytes, where: str) -> tuple[Record, bytes, str]:
    """A record's byte range to (record, media bytes, media extension); ``FormatError`` if it holds anything else."""
    members: dict[str, bytes] = {}
    keys: set[str] = set()
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                key, extension = _checked_member(member, where)
                keys.add(key)
                if extension in members:
                    raise FormatError(f"{where}: has two members {extension!r}")
                members[extension] = data[member.offset_data : member.offset_data + member.size]
    except tarfile.TarError as error:
        raise FormatError(f"{where}: not a tar ({error})") from None
    assert len(keys) == 1, keys
    media = [extension for extension in members if extension != RECORD_EXTENSION]
    allowed = media_extensions()
    if RECORD_EXTENSION not in members or len(media) != 1 or media[0] not in allowed:
        raise FormatError(
            f"{where}: key {keys.pop()!r} has members {sorted(members)}; a record is KEY.json and one of {', '.join(allowed)}"
        )
    return parse_record(members[RECORD_EXTENSION], where), members[media[0]], media[0]


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
        for key, start, end in _key_ranges(path):
            if key in done:
                raise FormatError(
                    f"{path}: the members of key {key!r} are not next to each other; pack the shard again"
                )
            done.add(key)
            where = f"{path}: key {key!r} at byte {start}"
            if end > size or end - start > _MAX_RECORD_BYTES:
                raise FormatError(f"{where}: claims to end at byte {end} of {size}; the shard is cut or damaged")
            file.seek(start)
            data = file.read(end - start)
            yield FoundRecord(start, data, *split_members(data, where), where)
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


def _key_ranges(path: Path) -> Iterator[tuple[str, int, int]]:
    """(key, first byte, byte behind the last block) of every run of members with one key."""
    current, start, end = None, 0, 0
    try:
        with tarfile.open(path, mode="r:") as tar:
            while (member := tar.next()) is not None:
                key, _ = _checked_member(member, str(path))
                if key != current:
                    if current is not None:
                        yield current, start, end
                    current, start = key, member.offset
                blocks = -(-member.size // tarfile.BLOCKSIZE)
                end = member.offset_data + blocks * tarfile.BLOCKSIZE
                # tarfile keeps every header it saw; a shard may hold a hundred thousand.
                tar.members = []  # type: ignore[attr-defined]
    except (tarfile.TarError, EOFError, OSError) as error:
        raise FormatError(
            f"{path}: not a plain, complete tar ({error}); compressed tars must be unpacked first"
        ) from None
    if current is None:
        raise FormatError(f"{path}: holds no record")
    yield current, start, end
