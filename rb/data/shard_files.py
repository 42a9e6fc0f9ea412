"""Where the bytes of records come from: shards of a folder, or of a URL through the cache. Both are read by places (shard, offset, length).

Nothing is checked here but the shards' sizes: the reader (`index.py`) compares every record with its digest, and asks once more for one that is wrong,
which then comes from the store itself.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rb.core.urls import Location, Url
from rb.data.byte_cache import ByteCache, shard_cache
from rb.data.formats import Manifest
from rb.data.store import THREADS, CutShortError, MissingError, Store

_OPEN_FILES = 64  # shards a process keeps open; large sets have more shards than a process may open files
NEAR = 256 << 10  # bytes between two records up to which they are read by one request
MOST_AT_ONCE = 16 << 20  # bytes of one request


class ByteRange(NamedTuple):
    """A record's byte range in its shard."""

    shard: int
    offset: int
    length: int


class ShardFiles(Protocol):
    """What a reader needs of shards."""

    def size(self, name: str) -> int | None:
        """Bytes of a file of the set; none where it is missing."""

    def read(self, place: ByteRange) -> bytes:
        """The bytes there, fewer where the shard ends before; ``OSError`` or ``ValueError`` where they cannot be read."""

    def read_again(self, place: ByteRange) -> bytes:
        """The same, from the shard itself: what was kept of it is forgotten."""

    def close(self) -> None:
        """Let go of open files."""


def shard_files(manifest_path: Location, manifest: Manifest) -> ShardFiles:
    """The files that a manifest names, beside it."""
    if isinstance(manifest_path, Url):
        return StoredShards(Store(manifest_path.parent), manifest, shard_cache())
    return LocalShards(manifest_path.parent, manifest)


class LocalShards:
    """Shards in a folder. Every read gives its own offset, so the open files can be used after a fork."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder = folder
        self._names = [entry.file for entry in manifest.shards]
        self._open: OrderedDict[int, int] = OrderedDict()

    def size(self, name: str) -> int | None:
        """As ``ShardFiles``."""
        file = self._folder / name
        return file.stat().st_size if file.is_file() else None

    def read(self, place: ByteRange) -> bytes:
        """As ``ShardFiles``."""
        return os.pread(self._descriptor(place.shard), place.length, place.offset)

    read_again = read

    def close(self) -> None:
        """As ``ShardFiles``."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _descriptor(self, shard: int) -> int:
        if shard not in self._open:
            if len(self._open) >= _OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
            self._open[shard] = os.open(self._folder / self._names[shard], os.O_RDONLY)
        self._open.move_to_end(shard)
        return self._open[shard]


class StoredShards:
    """Shards at a URL: by byte ranges, several at a time, through the cache."""

    def __init__(self, store: Store, manifest: Manifest, cache: ByteCache) -> None:
        self._store, self._cache = store, cache
        self._shards = manifest.shards
        self._ahead: dict[ByteRange, bytes] = {}

    def size(self, name: str) -> int | None:
        """As ``ShardFiles``."""
        try:
            return self._store.size(name)
        except MissingError:
            return None

    def read(self, place: ByteRange) -> bytes:
        """As ``ShardFiles``."""
        found = self._ahead.get(place)
        if found is None:
            found = self._cache.get(self._name(place))
        return self._fetch([place])[place] if found is None else found

    def read_again(self, place: ByteRange) -> bytes:
        """As ``ShardFiles``."""
        self._ahead.pop(place, None)
        self._cache.drop(self._name(place))
        return self._store.read(self._shards[place.shard].file, place.offset, place.length)

    def read_ahead(self, places: Sequence[ByteRange]) -> None:
        """Fetch those that are not in the cache, and hold them until the next call."""
        wanted = sorted({place for place in places if not self._cache.holds(self._name(place))})
        requests = list(merged(wanted))
        self._ahead = {}
        if len(requests) > 1:
            with ThreadPoolExecutor(min(THREADS, len(requests))) as pool:
                for found in pool.map(self._fetch_if_whole, requests):
                    self._ahead |= found
        elif requests:
            self._ahead = self._fetch_if_whole(requests[0])

    def close(self) -> None:
        """Nothing is open."""

    def _fetch_if_whole(self, places: Sequence[ByteRange]) -> dict[ByteRange, bytes]:
        try:
            return self._fetch(places)
        except (CutShortError, MissingError):  # whoever reads the record says which one it is
            return {}

    def _fetch(self, places: Sequence[ByteRange]) -> dict[ByteRange, bytes]:
        """Places of one shard, in order, by one request."""
        start, end = places[0].offset, max(place.offset + place.length for place in places)
        data = self._store.read(self._shards[places[0].shard].file, start, end - start)
        found = {place: data[place.offset - start : place.offset - start + place.length] for place in places}
        for place, part in found.items():
            self._cache.put(self._name(place), part)
        return found

    def _name(self, place: ByteRange) -> str:
        return f"{self._shards[place.shard].sha256} {place.offset} {place.length}"


def merged(places: Sequence[ByteRange]) -> Iterator[list[ByteRange]]:
    """Sorted places as requests: those of one shard that are near each other together, up to ``MOST_AT_ONCE`` bytes."""
    group: list[ByteRange] = []
    end = 0
    for place in places:
        far = group and (
            place.shard != group[0].shard
            or place.offset - end > NEAR
            or place.offset + place.length - group[0].offset > MOST_AT_ONCE
        )
        if far:
            yield group
            group, end = [], 0
        group.append(place)
        end = max(end, place.offset + place.length)
    if group:
        yield group


def sizes_of(files: ShardFiles, names: Iterable[str], at_once: bool) -> list[int | None]:
    """Size of each file, none where it is missing; of a store several are asked for ``at_once``."""
    if not at_once:
        return [files.size(name) for name in names]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(files.size, names))


def map_index(file: Location, manifest: Manifest, again: bool = False) -> NDArray[np.uint8]:
    """The bytes of the index at ``file``, memory-mapped; of a store a copy from the cache. That they are right is for the caller to check.

    Args:
        file: the index.
        manifest: that names it.
        again: the copy in the cache was wrong. This one is not kept, since the store's may be wrong too.

    Raises:
        StoreError: it cannot be fetched.
    """
    opened = _fetched_index(file, manifest, again) if isinstance(file, Url) else file
    return np.memmap(opened, np.uint8, "r").view(np.ndarray)  # a memmap's own views are slow to index


def _fetched_index(file: Url, manifest: Manifest, again: bool) -> BinaryIO:
    store, cache, entry = Store(file.parent), shard_cache(), manifest.index
    if again:
        cache.drop(entry.sha256)

    def fill(copy: BinaryIO) -> None:
        for piece in store.pieces(entry.file, entry.bytes):
            copy.write(piece)

    found = cache.open(entry.sha256, fill, keep=not again)
    if not again and os.fstat(found.fileno()).st_size != entry.bytes:
        return _fetched_index(file, manifest, again=True)
    return found


def stored_sha256(folder: Url, name: str, size: int, progress: Callable[[int], object]) -> str:
    """sha256 of a file of ``size`` bytes at a URL, read in pieces; ``progress`` is called with the bytes of each."""
    digest = hashlib.sha256()
    for piece in Store(folder).pieces(name, size):
        digest.update(piece)
        progress(len(piece))
    return digest.hexdigest()
