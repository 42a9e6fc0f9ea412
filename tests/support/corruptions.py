"""Shards that are damaged by a seeded draw, on a disk or in a store, and what a reader makes of each: every damage must be noticed before use.

A damage is a cut (before the set is opened, or while it is open), a bit of a tar header, or a bit of a payload or its padding.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rb.core.modality import IMAGE_REGION
from rb.data.index import ManifestReader, ShardCorruptionError
from tests.support.small_data import write_set
from tests.support.stores import S3

KINDS = ("truncation", "header flip", "payload flip")
NUM_RECORDS = 6


@dataclass
class Place:
    """A sound set, and how a shard of it is replaced. ``at`` is what readers are given."""

    folder: Path
    at: str
    replace: Callable[[str, bytes], object]


def on_disk(folder: Path) -> Place:
    """A set in ``folder`` whose shards are replaced there."""
    write_set(folder / "sound", IMAGE_REGION, NUM_RECORDS)
    write_set(folder / "set", IMAGE_REGION, NUM_RECORDS)

    def replace(name: str, content: bytes) -> None:
        shard = folder / "set" / name
        shard.chmod(0o644)
        shard.write_bytes(content)

    return Place(folder / "sound", str(folder / "set"), replace)


def in_store(folder: Path, s3: S3) -> Place:
    """The same as objects."""
    write_set(folder / "sound", IMAGE_REGION, NUM_RECORDS)
    prefix = f"damaged-{folder.name}"
    url = s3.upload(folder / "sound", prefix)
    return Place(folder / "sound", url, lambda name, content: s3.put(f"{prefix}/{name}", content))


def undetected(place: Place, kind: str, draw: random.Random, fresh: Callable[[], object] = lambda: None) -> list[str]:
    """Damage one shard, read all, and mend it: what went wrong, nothing where exactly the damaged records were refused.

    Args:
        fresh: called before the set is read, such as to forget what a cache has of the sound one.
    """
    with closing(ManifestReader(place.folder)) as sound:
        expected = [sound.record(number) for number in range(NUM_RECORDS)]
        rows = [tuple(int(row[name]) for name in ("shard", "offset", "length")) for row in sound.index.records]
    number = draw.randrange(NUM_RECORDS)
    shard, offset, length = rows[number]
    name = f"small-{shard:06d}.tar"
    whole = (place.folder / name).read_bytes()
    fresh()
    if kind == "truncation":
        while_open = draw.random() < 0.5
        end = draw.randrange(offset, offset + length) if while_open else draw.randrange(len(whole))
        hurt = [n for n, (s, start, size) in enumerate(rows) if s == shard and start + size > end]
        damaged, what = whole[:end], f"{name} cut to {end} bytes{' while open' if while_open else ''}"
    else:
        while_open, hurt = False, [number]
        headers = [at for at in range(0, length, 512) if whole[offset + at + 257 : offset + at + 262] == b"ustar"]
        in_headers = [at + byte for at in headers for byte in range(512)]
        others = sorted(set(range(length)) - set(in_headers))
        at = offset + draw.choice(in_headers if kind == "header flip" else others)
        damaged = bytearray(whole)
        damaged[at] ^= 1 << draw.randrange(8)
        what = f"{name}, byte {at}"
    try:
        if kind == "truncation" and not while_open:
            place.replace(name, damaged)
            with refusal() as refused:
                ManifestReader(place.at).close()
            return [] if refused else [f"{what}: opened"]
        with closing(ManifestReader(place.at)) as reader:
            place.replace(name, bytes(damaged))
            return [f"{what}: {problem}" for problem in _problems(reader, expected, hurt)]
    finally:
        place.replace(name, whole)


@contextmanager
def refusal() -> Iterator[list[str]]:
    """The message of a ``ShardCorruptionError`` in the block; empty where there was none."""
    said: list[str] = []
    try:
        yield said
    except ShardCorruptionError as error:
        said.append(str(error))


def _problems(reader: ManifestReader, expected: list[object], hurt: list[int]) -> Iterator[str]:
    reader._read_ahead(range(NUM_RECORDS))
    for number, sound in enumerate(expected):
        with refusal() as refused:
            found = reader.record(number)
        if bool(refused) != (number in hurt):
            yield f"record {number} was {'refused' if refused else 'used'}"
        elif not refused and (found.record, found.media) != (sound.record, sound.media):  # type: ignore[attr-defined]
            yield f"record {number} differs"


def forget(cache: Path) -> None:
    """Remove the records that a cache keeps."""
    for path in cache.rglob("*"):
        if path.is_file():
            path.unlink()
