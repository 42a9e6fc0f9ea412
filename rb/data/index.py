"""The binary index beside a folder of shards, and reading through it: number of a sample -> its record, checked.

The index makes every row one look-up, so the order of training is ours (`order.py`) and a resume costs nothing. WebDataset's own reader
loses data silently: after one altered header byte the rest of its shard is gone. Here a digest covers each record's whole byte range in
its tar, headers too, and is checked whenever the record is read.

Layout, little-endian: header [64 bytes], records [R x 32 bytes], samples [S x 12 bytes], source ids (UTF-8, one after another). The
manifest holds the size and sha256 of the whole file.
"""

from __future__ import annotations

import itertools
import shlex
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rb.core.files import digest64, file_sha256, sha256, whole_file
from rb.core.modality import modality_spec
from rb.core.strict_json import FormatError
from rb.core.urls import Location, Url
from rb.data.examples import Examples
from rb.data.formats import (
    MAX_RECORD_BYTES,
    IndexEntry,
    Manifest,
    ObjectAnnotation,
    Question,
    Record,
    find_manifest,
    manifest_digest,
    parse_manifest,
    read_manifest_bytes,
)
from rb.data.predictions import sample_id
from rb.data.shard_files import ByteRange, StoredShards, map_index, shard_files, sizes_of
from rb.data.store import CutShortError, MissingError
from rb.data.tars import split_members
from rb.sources.feature_set import FeatureSet
from rb.sources.groups import StoredGroups, stored_groups
from rb.sources.source import Stored

_MAGIC = b"RBINDEX1"
_HEADER = struct.Struct("<8s I 4x Q Q Q 24x")  # magic, shards, records, samples, bytes of ids
_RECORDS = np.dtype([("offset", "<u8"), ("digest", "<u8"), ("id_end", "<u8"), ("length", "<u4"), ("shard", "<u4")])
_SAMPLES = np.dtype([("record", "<u4"), ("object", "<i4"), ("caption", "<u4")])
_ROWS = 1 << 16  # rows of a table that are looked at together, so that an index of any size needs little memory
_AT_HAND = 16  # records read ahead where all are read in order
_WHOLE = -1  # object number of a sample that is the whole source


class ShardCorruptionError(ValueError):
    """A shard no longer holds what was indexed; the message names the file, the byte, the record and the remedy."""


class IndexBuilder:
    """Collects what a scan of shards finds and writes the index. One sample per caption or question of the source, or caption of each object."""

    def __init__(self, modality: str) -> None:
        self._regional = modality_spec(modality).regional
        self._records = array("Q")  # five numbers a record
        self._samples = array("q")  # three numbers a sample
        self._ids: list[bytes] = []
        self._ids_bytes = 0
        self.num_objects = 0

    @property
    def num_records(self) -> int:
        """Records so far."""
        return len(self._ids)

    @property
    def num_samples(self) -> int:
        """Samples so far."""
        return len(self._samples) // 3

    def add(self, record: Record, shard: int, offset: int, data: bytes) -> None:
        """One record whose byte range ``data`` starts at ``offset`` of shard number ``shard``."""
        number = len(self._ids)
        self._ids.append(record.source_id.encode())
        self._ids_bytes += len(self._ids[-1])
        self._records.extend((offset, digest64(data), self._ids_bytes, len(data), shard))
        if self._regional:
            for i, item in enumerate(record.objects):
                for j in range(len(item.captions)):
                    self._samples.extend((number, i, j))
            self.num_objects += len(record.objects)
        else:
            for j in range(len(record.questions or record.captions)):
                self._samples.extend((number, _WHOLE, j))

    def write(self, path: Path, num_shards: int) -> IndexEntry:
        """The finished index under ``path``, in one step."""
        records = np.frombuffer(self._records, np.uint64).reshape(-1, 5)
        table = np.empty(self.num_records, _RECORDS)
        for column, name in enumerate(("offset", "digest", "id_end", "length", "shard")):
            table[name] = records[:, column]
        samples = np.frombuffer(self._samples, np.int64).reshape(-1, 3)
        rows = np.empty(self.num_samples, _SAMPLES)
        for column, name in enumerate(("record", "object", "caption")):
            rows[name] = samples[:, column]
        header = _HEADER.pack(_MAGIC, num_shards, self.num_records, self.num_samples, self._ids_bytes)
        with whole_file(path) as temporary, temporary.open("wb") as file:
            for piece in (header, table.tobytes(), rows.tobytes(), b"".join(self._ids)):
                file.write(piece)
        return IndexEntry(path.name, path.stat().st_size, file_sha256(path))


@dataclass(frozen=True)
class Index:
    """The three tables, memory-mapped: records [R], samples [S] and the source ids' bytes."""

    records: NDArray[np.void]
    samples: NDArray[np.void]
    ids: NDArray[np.uint8]

    @classmethod
    def open(cls, path: Location, manifest: Manifest, verify: bool = True) -> Index:
        """Map the index of the manifest at ``path``, after comparing its size, counts and sha256 with the manifest (``verify``)."""
        file = path.parent / manifest.index.file
        remedy = f"make it again: {index_again(path, manifest)}"
        size = shard_files(path, manifest).size(manifest.index.file)
        if size is None:
            raise ValueError(f"{file}: the index that {path} names is missing; {remedy}")
        if size != manifest.index.bytes or size < _HEADER.size:
            raise ValueError(f"{file}: {size} bytes, but {path} says {manifest.index.bytes}; {remedy}")
        content = map_index(file, manifest)
        stored = isinstance(file, Url)
        if (verify or stored) and sha256(content.data) != manifest.index.sha256:
            if stored:  # the cache's may be torn
                content = map_index(file, manifest, again=True)
            if sha256(content.data) != manifest.index.sha256:
                raise ValueError(f"{file}: altered since {path} was written (sha256 differs); {remedy}")
        magic, num_shards, num_records, num_samples, ids_bytes = _HEADER.unpack(content[: _HEADER.size].tobytes())
        sizes = (_HEADER.size, num_records * _RECORDS.itemsize, num_samples * _SAMPLES.itemsize, ids_bytes)
        starts = list(itertools.accumulate(sizes))
        counted = (len(manifest.shards), manifest.counts["records"], manifest.counts["samples"], size)
        if magic != _MAGIC or (num_shards, num_records, num_samples, starts[3]) != counted:
            raise ValueError(f"{file}: does not fit {path} (another version or another folder's index); {remedy}")
        if not num_samples:
            raise ValueError(f"{path}: holds no sample; make the set again with `rb prepare`")
        records, samples, ids = (content[a:b] for a, b in itertools.pairwise(starts))
        index = cls(records.view(_RECORDS), samples.view(_SAMPLES), ids)
        wrong = index.problem(manifest) if verify else None
        if wrong:
            raise ValueError(f"{file}: {wrong}; {remedy}")
        return index

    def problem(self, manifest: Manifest) -> str | None:
        """The first row that points to what is not there: in the shards, as their sizes stand in the manifest, or in the index itself."""
        room = np.array([entry.bytes for entry in manifest.shards] + [0], np.uint64)
        for rows, table in (("record", self.records), ("sample", self.samples)):
            for start in range(0, len(table), _ROWS):
                wrong = self._wrong_records(start, room) if rows == "record" else self._wrong_samples(start)
                for what, where in wrong.items():
                    if where.any():
                        return f"{rows} {start + int(np.argmax(where))} {what}"
        return None

    def _wrong_records(self, start: int, room: NDArray[np.uint64]) -> dict[str, NDArray[np.bool_]]:
        """What can be wrong -> in which of the rows from ``start`` on it is; ``room`` is the size of each shard, and 0."""
        part = self.records[start : start + _ROWS]
        shard, length, offset, ends = (part[name] for name in ("shard", "length", "offset", "id_end"))
        before = np.append(self.records["id_end"][start - 1] if start else np.uint64(0), ends[:-1])
        outside = shard >= len(room) - 1
        room = room[np.minimum(shard, len(room) - 1)]
        return {
            "names a shard that the manifest has not": outside,
            f"claims more than {MAX_RECORD_BYTES:,} bytes": length > MAX_RECORD_BYTES,
            "reaches beyond the end of its shard": (offset > room) | (length > room - np.minimum(offset, room)),
            "has a source id outside the ids": (ends > len(self.ids)) | (ends < before),
        }

    def _wrong_samples(self, start: int) -> dict[str, NDArray[np.bool_]]:
        part = self.samples[start : start + _ROWS]
        return {
            "names a record that the index has not": part["record"] >= len(self.records),
            "names an object below 0": part["object"] < _WHOLE,
        }

    def source_id(self, record: int) -> str:
        """The source id of record number ``record``, without reading its shard."""
        start = int(self.records[record - 1]["id_end"]) if record else 0
        return self.ids[start : int(self.records[record]["id_end"])].tobytes().decode("utf-8", "replace")


def index_again(path: Location, manifest: Manifest) -> str:
    """The command that writes the index and the very same manifest again from the shards."""
    folder = "FOLDER" if isinstance(path, Url) else str(path.parent)
    words = ["rb", "data", "index", folder, "--modality", manifest.modality, "--overwrite"]
    command = f"`{shlex.join(words + (['--exif', manifest.exif] if manifest.exif else []))}`"
    return f"{command} on a copy of the set, and upload both files" if isinstance(path, Url) else command


@dataclass(frozen=True)
class Loaded:
    """One row as stored: the record, its object or none, the caption of this sample, the media file's bytes and extension.

    ``exif``, ``groups``: as of `rb.sources.source.Stored`. In a set of questions ``question`` is this sample's, and ``caption`` its text.
    """

    record: Record
    item: ObjectAnnotation | None
    caption: str
    media: bytes
    extension: str
    where: str
    exif: str | None = None
    question: Question | None = None
    features: FeatureSet | None = None
    groups: StoredGroups | None = None

    @property
    def id(self) -> str:
        """The sample id."""
        return sample_id(self.record.source_id, self.item.object_id if self.item else None)

    @property
    def stored(self) -> Stored:
        """The media as their source reads them."""
        return Stored(self.media, self.record.size, self.where, self.exif, self.groups)

    @property
    def references(self) -> tuple[str, ...]:
        """Everything said of this source or object."""
        return tuple(self.item.captions if self.item else self.record.captions)


class ManifestReader:
    """Random access to the samples and the examples of one manifest.

    A sample is (record, object or none, caption), for training; an example is (record, object or none), for prediction, with all its
    captions as references. In a set of questions a sample is (record, question), and an example is a record with all its questions. It can be used
    after a fork, since every read gives its own offset. ``use_groups``: whether to hand out stored groups.

    Raises:
        ValueError: at once, if a shard is missing or has another size, or the index does not fit.
    """

    def __init__(self, path: Location | str, verify: bool = True, use_groups: bool = True) -> None:
        self.path, self.use_groups = find_manifest(path), use_groups
        content = read_manifest_bytes(self.path)
        self.manifest = parse_manifest(content, str(self.path))
        self.digest = manifest_digest(content)
        self.index = Index.open(self.path, self.manifest, verify)
        self._examples: Examples | None = None
        self._folder = str(self.path.parent)
        self._files = shard_files(self.path, self.manifest)
        if self.stored and not verify:  # a request for each shard
            return
        found = sizes_of(self._files, [entry.file for entry in self.manifest.shards], at_once=self.stored)
        for entry, size in zip(self.manifest.shards, found, strict=True):
            file = self.path.parent / entry.file
            if size is None:
                raise ValueError(
                    f"{file}: the shard that {self.path} names is missing; bring it back, or make the shards again"
                )
            if size != entry.bytes:
                raise ShardCorruptionError(
                    f"{file}: {size} bytes, but {self.path} says {entry.bytes}: cut or replaced; "
                    "bring the right file back, or make the shards again with `rb prepare`"
                )

    def __reduce__(self) -> tuple[type[ManifestReader], tuple[Location, bool, bool]]:
        # A worker process that does not fork opens the files itself; they were verified here.
        return ManifestReader, (self.path, False, self.use_groups)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.index.samples)

    @property
    def num_examples(self) -> int:
        """Number of (record, object or none)."""
        return len(self._example_rows())

    def sample(self, number: int) -> Loaded:
        """Sample ``number`` of 0 .. len - 1; ``ShardCorruptionError`` if its record was altered."""
        return self.samples((number,))[0]

    def samples(self, numbers: Sequence[int]) -> list[Loaded]:
        """Samples of one record, which is read and checked once, and whose media they share. Errors as of ``sample``."""
        records = {self.record_of(number) for number in numbers}
        assert len(records) == 1, f"{self.path}: samples {numbers} are of {len(records)} records"
        whole = self.record(records.pop())
        return [self._one(number, whole) for number in numbers]

    def record_of(self, number: int) -> int:
        """The record of sample ``number``."""
        return int(self.index.samples[number]["record"])

    def _one(self, number: int, whole: Loaded) -> Loaded:
        row, record = self.index.samples[number], whole.record
        item_number, caption_number = int(row["object"]), int(row["caption"])
        try:
            item = None if item_number == _WHOLE else record.objects[item_number]
            question = record.questions[caption_number] if record.questions else None
            texts = record.captions if item is None else item.captions
            caption = texts[caption_number] if question is None else question.question
        except IndexError:
            raise ShardCorruptionError(
                f"{whole.where}: has no object {item_number} with a caption {caption_number}, which sample {number} of the index names; "
                f"make the index again: {index_again(self.path, self.manifest)}"
            ) from None
        return replace(whole, item=item, caption=caption, question=question)

    def example(self, number: int) -> Loaded:
        """Example ``number`` of 0 .. num_examples - 1, with its first caption; all of them are in ``references``."""
        return self.sample(self.sample_of(number))

    def records_of(self, examples: Sequence[int]) -> NDArray[np.int64]:
        """The record [N] of each example."""
        return self.index.samples["record"][self._example_rows().samples(np.asarray(examples, np.int64))].astype(
            np.int64
        )

    def sample_of(self, example: int) -> int:
        """The sample that stands for an example: the one with its first caption."""
        return self._example_rows()[example]

    def records(self) -> Iterator[tuple[Record, Stored]]:
        """Every record once, with its media, in the order of the shards."""
        for number in range(len(self.index.records)):
            if number % _AT_HAND == 0:
                self._read_ahead(range(number, min(number + _AT_HAND, len(self.index.records))))
            loaded = self.record(number)
            yield loaded.record, loaded.stored

    def record(self, number: int) -> Loaded:
        """Record ``number`` in the order of the shards, as a whole; ``ShardCorruptionError`` if it was altered."""
        data, where = self._read(number)
        try:
            record, media, extension, groups = split_members(data, where)
        except FormatError as error:
            raise ShardCorruptionError(
                f"{error}; make the index again: {index_again(self.path, self.manifest)}"
            ) from None
        about = self.manifest
        stored = stored_groups(groups, about.groups, where) if self.use_groups else None
        return Loaded(record, None, "", media, extension, where, about.exif, features=about.features, groups=stored)

    @property
    def stored(self) -> bool:
        """Whether its shards are in a store, at a URL."""
        return isinstance(self._files, StoredShards)

    def read_ahead(self, samples: Iterable[int]) -> None:
        """These samples are read next: records of a store are fetched now, several at a time."""
        self._read_ahead(int(self.index.samples[number]["record"]) for number in samples)

    def close(self) -> None:
        """Close the shards; a later read opens them again."""
        self._files.close()

    def _read_ahead(self, records: Iterable[int]) -> None:
        if isinstance(self._files, StoredShards):
            self._files.read_ahead([self._range(self.index.records[number]) for number in records])

    @staticmethod
    def _range(row: np.void) -> ByteRange:
        return ByteRange(int(row["shard"]), int(row["offset"]), int(row["length"]))

    def _example_rows(self) -> Examples:
        if self._examples is None:
            self._examples = Examples(self.index.samples["caption"])
        return self._examples

    def _read(self, number: int) -> tuple[bytes, str]:
        row = self.index.records[number]
        place, digest = self._range(row), int(row["digest"])
        file = f"{self._folder}/{self.manifest.shards[place.shard].file}"
        where = f"{file}: record {self.index.source_id(number)!r} at byte {place.offset}"

        def problem(data: bytes) -> str | None:
            if len(data) != place.length:
                return f"only {len(data)} of {place.length} bytes are left"
            return None if digest64(data) == digest else "its bytes were altered"

        try:
            for read in (self._files.read, self._files.read_again):  # wrong perhaps only in the cache, or on the way
                data = read(place)
                wrong = problem(data)
                if wrong is None:
                    return data, where
        except OSError as error:
            raise ShardCorruptionError(
                f"{where}: cannot be read ({error}); check the disk, or bring the shard back"
            ) from error
        except (CutShortError, MissingError) as error:
            raise ShardCorruptionError(f"{where}: {error}") from None
        raise ShardCorruptionError(
            f"{where}: {wrong}; bring the shard back, or make it again with `rb prepare` "
            f"(`rb data verify {self.path.parent}` checks all)"
        )
