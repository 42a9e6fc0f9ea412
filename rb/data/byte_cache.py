"""A cache of bytes on the local disk, of bounded size, for all processes of a host: what was fetched from a store need not be fetched again.

A name leads to a file. Files appear whole (written beside, then renamed) but are not synced: whoever reads one checks its digest and drops it
if it is wrong, so a file that a power failure tore is never used. All processes add up the size in one file, under a lock; where it exceeds the limit, the
files that were not used for the longest time go. A cache that cannot be written costs time, never correctness.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from rb.core.files import sha256, temporary_name
from rb.core.locks import locked

FOLDER, LIMIT = "RB_SHARD_CACHE", "RB_SHARD_CACHE_GB"  # variables
DEFAULT_GB = 20.0
KEEP_FREE = 1 << 30  # bytes of the disk that are left to others
_DOWN_TO = 0.9  # of the limit: the files are listed once for a tenth of it
_FORGOTTEN_S = 3600.0  # a temporary file of this age belongs to a process that was killed
_TOTAL = "total"

log = logging.getLogger(__name__)


def shard_cache() -> ByteCache:
    """The cache that the environment names: ``$RB_SHARD_CACHE``, by default ``$XDG_CACHE_HOME/regionblip/shards``.

    Raises:
        ValueError: ``RB_SHARD_CACHE_GB`` is not a number of gigabytes.
    """
    text = os.environ.get(LIMIT) or str(DEFAULT_GB)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = math.nan
    if not 0 <= gigabytes < math.inf:
        raise ValueError(f"{LIMIT}={text}: must be a number of gigabytes, 0 for no cache; set {LIMIT}={DEFAULT_GB:g}")
    folder = os.environ.get(FOLDER)
    if not folder:
        folder = f"{os.environ.get('XDG_CACHE_HOME') or Path('~/.cache').expanduser()}/regionblip/shards"
    return ByteCache(Path(folder), int(gigabytes * 1e9))


class ByteCache:
    """Files below ``folder``, together at most ``limit`` bytes. Names are any texts."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit

    def get(self, name: str) -> bytes | None:
        """The bytes kept under ``name``, or none. They may be torn: the caller checks them."""
        path = self._path(name)
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return data

    def holds(self, name: str) -> bool:
        """Whether ``get`` would find something now."""
        return self._path(name).exists()

    def put(self, name: str, data: bytes) -> None:
        """Keep ``data``, if there is room."""
        if len(data) > self.limit:
            return
        with suppress(OSError):
            self._keep(name, lambda file: file.write(data)).close()

    def drop(self, name: str) -> None:
        """Forget what is kept under ``name``."""
        with suppress(OSError):
            self._path(name).unlink()

    def open(self, name: str, fill: Callable[[BinaryIO], object], keep: bool = True) -> BinaryIO:
        """A large file, open for reading; ``fill`` writes it if it is not kept. The reader can go on with it after it was removed from the cache.

        Raises:
            OSError: neither the cache nor the folder for temporary files can hold it.
        """
        path = self._path(name)
        with suppress(OSError):
            file = path.open("rb")
            os.utime(path)
            return file
        try:
            return self._keep(name, fill, keep)
        except OSError as error:
            log.warning(
                "%s: the cache of shards cannot be written (%s); files are fetched each time", self.folder, error
            )
        spare = tempfile.TemporaryFile("w+b")  # noqa: SIM115 (the caller's)
        fill(spare)
        spare.flush()
        return spare

    def _path(self, name: str) -> Path:
        digest = sha256(name)[:40]
        return self.folder / digest[:2] / digest

    def _keep(self, name: str, fill: Callable[[BinaryIO], object], keep: bool = True) -> BinaryIO:
        path = self._path(name)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = temporary_name(path)
        try:
            with temporary.open("xb") as out:
                fill(out)
                size = out.tell()
            file = temporary.open("rb")
            if not keep or size > self.limit or shutil.disk_usage(self.folder).free < KEEP_FREE:
                return file
            temporary.replace(path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        self._count(size)
        return file

    def _count(self, added: int) -> None:
        """Add to the size of all files, and make room where it exceeds the limit."""
        path = self.folder / _TOTAL
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with locked(fd, path):
                text = os.pread(fd, 32, 0)
                total = int(text) + added if text.strip().isdigit() else self._make_room()
                if total > self.limit:
                    total = self._make_room()
                os.pwrite(fd, b"%-31d\n" % total, 0)
        finally:
            os.close(fd)

    def _make_room(self) -> int:
        """Remove the files that were used least recently; returns the size of those that stay."""
        found = []
        for folder in self.folder.iterdir():
            with suppress(OSError):  # another process may remove the same
                for entry in os.scandir(folder) if folder.is_dir() else ():
                    state = entry.stat()
                    found.append((state.st_mtime_ns, state.st_size, entry.path, entry.name.startswith(".")))
        now, total = time.time_ns(), sum(size for _, size, _, _ in found)
        room = self.limit if total <= self.limit else int(self.limit * _DOWN_TO)
        for used, size, path, temporary in sorted(found):
            if now - used > _FORGOTTEN_S * 1e9 if temporary else total > room:
                with suppress(OSError):
                    os.unlink(path)  # noqa: PTH108 (by the hundred thousand)
                    total -= size
        return total
