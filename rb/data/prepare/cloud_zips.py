"""Clouds inside zips as they are shipped (Cap3D's ``compressed_pcs_00.zip``): members are read in place, nothing is unpacked to the disk.

A member is found by the last part of its name, ``<uid>.<extension>``, so no name in a zip ever becomes a path. ``zipfile`` keeps 640 bytes a
member, and the 1,006,782 clouds come in 13 zips: one zip's directory is looked through at a time, and 34 bytes a wanted member are kept.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rb.core.stand_ins import stand_in

MAX_DIRECTORY = 48 << 20  # bytes of a zip's directory; 200,000 clouds, Cap3D's most in one zip, have 26 MB
MAX_MEMBERS = 300_000
_ENTRY_MARK = b"PK\x01\x02"
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_ENCRYPTED = 1
# What a damaged zip makes the library raise.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    LookupError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
)


class _Bounded(io.FileIO):
    """A zip whose directory is looked at before the library makes objects of it."""

    def read(self, size: int | None = -1, /) -> bytes:
        """As of a file, but no more than a directory may have."""
        if size is not None and size > MAX_DIRECTORY:
            raise ValueError(f"its directory claims {size:,} bytes, at most {MAX_DIRECTORY:,} are read")
        data = super().read(size) or b""
        if data.count(_ENTRY_MARK) > MAX_MEMBERS:
            raise ValueError(f"it has more than {MAX_MEMBERS:,} members; split it")
        return data


_ROW = struct.Struct("<HQQQIHH")  # group, place, packed and unpacked bytes, checksum, method, flags


@dataclass(frozen=True)
class _Group:
    """Members of one zip and folder, with one extension."""

    archive: zipfile.ZipFile
    path: Path
    folder: str
    suffix: str

    def member(self, uid: str) -> str:
        return f"{self.folder}{uid}{self.suffix}"


@dataclass
class CloudZips:
    """The clouds of ``uids`` in some zips; where two hold one object, the first one counts. Threads may read at the same time.

    Raises:
        ValueError: a zip that cannot be read, or with a directory beyond the limits.
    """

    paths: Sequence[Path]
    uids: Container[str]
    suffixes: Sequence[str]
    _groups: list[_Group] = field(default_factory=list)
    _rows: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in self.paths:
            try:
                self._look_through(path)
            except _DAMAGE as error:
                with path.open("rb") as file:
                    remedy = stand_in(file.read(1024)) or "download it again"
                raise ValueError(
                    f"{path}: not a zip that can be read ({' '.join(str(error).split())[:200]}); {remedy}"
                ) from None

    def _look_through(self, path: Path) -> None:
        archive = zipfile.ZipFile(_Bounded(path))
        numbers: dict[tuple[str, str], int] = {}
        for info in archive.infolist():
            folder, slash, name = info.filename.rpartition("/")
            uid, dot, extension = name.rpartition(".")
            suffix = dot + extension
            if suffix not in self.suffixes or uid not in self.uids or uid in self._rows:
                continue
            if (
                info.filename != info.orig_filename
            ):  # the library reads members by the name that stands in front of them
                continue
            key = folder + slash, suffix
            if key not in numbers:
                numbers[key] = len(self._groups)
                self._groups.append(_Group(archive, path, *key))
            self._rows[uid] = _ROW.pack(
                numbers[key],
                info.header_offset,
                info.compress_size,
                info.file_size,
                info.CRC,
                info.compress_type,
                info.flag_bits & 0xFFFF,
            )
        archive.filelist.clear()
        archive.NameToInfo.clear()

    def __contains__(self, uid: str) -> bool:
        return uid in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def where(self, uid: str) -> str:
        """The place of a cloud, for people."""
        group = self._groups[_ROW.unpack(self._rows[uid])[0]]
        return f"{group.path}: {group.member(uid)}"

    def suffix(self, uid: str) -> str:
        """The extension of a cloud's file, with its dot."""
        return self._groups[_ROW.unpack(self._rows[uid])[0]].suffix

    def read(self, uid: str, most: int) -> bytes:
        """The bytes of a cloud's file.

        Raises:
            ValueError: more than ``most`` bytes, encrypted, packed by another method than zips have by default, or damaged.
        """
        number, place, packed, size, checksum, method, flags = _ROW.unpack(self._rows[uid])
        group = self._groups[number]
        if flags & _ENCRYPTED:
            raise ValueError("it is encrypted")
        if method not in _METHODS:
            raise ValueError(f"it is packed by method {method}; 0 (stored) and 8 (deflated) are read")
        if size > most:
            raise ValueError(f"it claims {size:,} bytes, at most {most:,} are read")
        info = zipfile.ZipInfo(group.member(uid))
        info.header_offset, info.compress_size, info.file_size = place, packed, size
        info.CRC, info.compress_type, info.flag_bits = checksum, method, flags
        try:
            with group.archive.open(info) as member:
                data = member.read(size + 1)  # what the directory claims about the size is not believed
        except _DAMAGE as error:
            raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from None
        if len(data) != size:
            raise ValueError(f"it has {len(data):,} bytes in place of {size:,}")
        return data
