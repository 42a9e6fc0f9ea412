"""Two sets against each other: what differs (``rb data diff``), and what both hold though no test may see it (``rb data verify --against``).

What counts as the same picture or cloud is its source's business (``Source.look``).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from rb.core import progress
from rb.core.modality import modality_spec
from rb.core.strict_json import dumps
from rb.core.threads import in_order
from rb.core.urls import Location
from rb.data.formats import FormatError, Record, require_media
from rb.data.index import ManifestReader
from rb.sources.features import decode_features
from rb.sources.source import Stored
from rb.sources.table import source_of

_NAMED = 3  # sources that a message names


@dataclass
class Difference:
    """What differs between two sets, by source id.

    Attributes:
        only_first, only_second: sources that one of them lacks.
        media: sources with other pixels or points.
        annotations: sources with other objects, boxes, captions or questions. Neither the order of records and objects nor the names of the
            set and its split count.
        changes: what was found in ``annotations`` -> how often.
        equal: how many sources are the same in both.
    """

    only_first: list[str] = field(default_factory=list)
    only_second: list[str] = field(default_factory=list)
    media: list[str] = field(default_factory=list)
    annotations: list[str] = field(default_factory=list)
    changes: Counter[str] = field(default_factory=Counter)
    equal: int = 0

    @property
    def empty(self) -> bool:
        """Whether the sets say the same."""
        return not (self.only_first or self.only_second or self.media or self.annotations)


def difference(first: Location, second: Location) -> Difference:
    """What differs between two sets of one modality. Digests of the first are held in memory, 100 bytes a source.

    Raises:
        ValueError: sets of two modalities, or a record that was altered.
    """
    one, other = ManifestReader(first), ManifestReader(second)
    _same_modality(one, other)
    known = {
        record.source_id: (number, *_digests(record, stored)) for number, (record, stored) in enumerate(_each(one))
    }
    found = Difference()
    for record, stored in _each(other):
        before = known.pop(record.source_id, None)
        if before is None:
            found.only_second.append(record.source_id)
            continue
        number, media, annotations = before
        new_media, new_annotations = _digests(record, stored)
        if media != new_media:
            found.media.append(record.source_id)
        changes = Counter() if annotations == new_annotations else _changes(one.record(number).record, record)
        if changes:
            found.annotations.append(record.source_id)
            found.changes.update(changes)
        found.equal += media == new_media and not changes
    one.close()
    found.only_first = list(known)
    return found


def _changes(first: Record, second: Record) -> Counter[str]:
    """What differs between two records of one source -> how often; empty where it is only the way numbers are written."""
    old, new = ({item.object_id: item for item in record.objects} for record in (first, second))
    asked, asked_now = ({item.question_id: item for item in record.questions} for record in (first, second))
    both = old.keys() & new.keys()
    return +Counter(
        {
            "objects missing": len(old.keys() - both),
            "objects added": len(new.keys() - both),
            "other boxes": sum(old[name].box != new[name].box for name in both),
            "objects with other captions": sum(old[name].captions != new[name].captions for name in both),
            "sources with other captions": first.captions != second.captions,
            "sources of another size": first.size != second.size,
            "sources of another domain": first.domain != second.domain,
            "other questions": sum(asked.get(name) != asked_now.get(name) for name in asked.keys() | asked_now.keys()),
        }
    )


@dataclass(frozen=True)
class Shared:
    """Sources that two sets share: by id, and pairs (source of the first, source of the second) of equal media under other ids."""

    first: Location
    second: Location
    ids: list[str]
    media: list[tuple[str, str]]

    @property
    def empty(self) -> bool:
        """Whether nothing is shared."""
        return not (self.ids or self.media)


def shared(first: Location, second: Location, workers: int = 1) -> Shared:
    """What two sets share, for splits that must not; pictures and clouds are decoded by ``workers`` threads.

    Raises:
        ValueError: sets of different kinds of media, or a record that was altered.
    """
    one, other = ManifestReader(first), ManifestReader(second)
    if modality_spec(one.manifest.modality).source != modality_spec(other.manifest.modality).source:
        _same_modality(one, other)
    for reader in (one, other):
        require_media(reader.manifest, reader.path)
    source = source_of(one.manifest.modality)

    def look(pair: tuple[Record, Stored]) -> bytes:
        return source.look(pair[1])

    known, offered = (
        {record.source_id: seen for (record, _), seen in in_order(look, _each(reader), workers, ahead=workers + 1)}
        for reader in (one, other)
    )
    by_id = [name for name in offered if name in known]
    rest = {name: look for name, look in offered.items() if name not in known}
    return Shared(one.path, other.path, by_id, _alike(known, rest, source.look_tolerance))


def _alike(known: dict[str, bytes], offered: dict[str, bytes], tolerance: int) -> list[tuple[str, str]]:
    """Pairs (name in ``known``, name in ``offered``) of equal looks; the nearest for each offered one.

    Equal are looks that differ in at most ``tolerance`` bits, and in an eighth of those that are set in either: flat pictures have few.

    Each is compared with all: 10,000 pictures with 100,000 are 10^9 comparisons of 256 bits, some seconds.
    """
    if not tolerance:
        names = {look: name for name, look in reversed(known.items())}
        return [(names[look], name) for name, look in offered.items() if look in names]
    table = np.frombuffer(b"".join(known.values()), np.uint64).reshape(len(known), -1)
    names_known, pairs = list(known), []
    for name, look in offered.items():
        distances = np.bitwise_count(table ^ np.frombuffer(look, np.uint64)).sum(axis=1, dtype=np.int64)
        nearest = int(distances.argmin())
        either = int(np.bitwise_count(table[nearest] | np.frombuffer(look, np.uint64)).sum())
        if distances[nearest] <= min(tolerance, either / 8):
            pairs.append((names_known[nearest], name))
    return pairs


def check_whole(manifest: Location, workers: int = 1) -> list[str]:
    """Decode every picture and cloud of a set to its end, by ``workers`` threads; one line for each that fails."""
    reader = ManifestReader(manifest)
    source = source_of(reader.manifest.modality)

    about = reader.manifest.features

    def fault(pair: tuple[Record, Stored]) -> str | None:
        record, stored = pair
        try:
            if about is not None:
                decode_features(stored, about, source.frame_numbers)
                return None
            source.check(stored)
            source.check_whole(stored)
            source.check_regions(stored, [item.box for item in record.objects])
        except FormatError as error:
            return str(error)
        return None

    return [found for _, found in in_order(fault, _each(reader), workers, ahead=workers + 1) if found is not None]


def first_few(names: list[str]) -> str:
    """The first three, and how many more."""
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _each(reader: ManifestReader) -> Iterator[tuple[Record, Stored]]:
    total, name = reader.manifest.counts["records"], f"{reader.manifest.name} {reader.manifest.split}"
    yield from progress.bar(reader.records(), total=total, desc=name, unit="record", delay=5)
    reader.close()


def _same_modality(one: ManifestReader, other: ManifestReader) -> None:
    if one.manifest.modality != other.manifest.modality:
        raise ValueError(
            f"{one.path} holds {one.manifest.modality}, {other.path} {other.manifest.modality}; give two sets of one modality"
        )


def _digests(record: Record, stored: Stored) -> tuple[bytes, bytes]:
    """Of the media, and of what is annotated, whatever the order of objects and questions, and whatever the set and its split are called."""
    said = {name: value for name, value in record.tree().items() if name not in ("dataset", "split")}
    for name, key in (("objects", "object_id"), ("questions", "question_id")):
        said[name] = sorted(said.get(name, ()), key=lambda item: str(item[key]))
    return _digest(stored.media), _digest(dumps(said).encode())


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
