"""What shards hold, gathered into index and manifest: of tars that are written (`shard_writer.py`) or that others made (`adopt`).

`rb data index` uses `adopt`, `rb data verify` uses `verify_shards`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from rb.core import progress
from rb.core.files import digest64, file_sha256, write_whole
from rb.core.strict_json import parse
from rb.core.threads import in_order
from rb.core.urls import Location, Url
from rb.data.check_record import check_record
from rb.data.formats import (
    FORMAT_VERSION,
    INDEX_FILE,
    MANIFEST_FILE,
    MAX_RECORD_BYTES,
    QUESTIONS,
    FormatError,
    Manifest,
    Record,
    ShardEntry,
    UnfitRecordError,
    find_manifest,
    read_manifest,
)
from rb.data.index import IndexBuilder, ShardCorruptionError
from rb.data.shard_files import shard_files, stored_sha256
from rb.data.tars import FoundRecord, scan_shard
from rb.sources.feature_set import FeatureSet
from rb.sources.features import EXTENSION as FEATURES_EXTENSION
from rb.sources.features import decode_features
from rb.sources.groups import GroupSet, stored_groups
from rb.sources.pixels import EXIF_CHOICES
from rb.sources.source import Stored
from rb.sources.table import source_of

MEMBER_OVERHEAD = 2 * 512  # header and padding of a record's member, at most


class Collector:
    """What shards hold, gathered shard by shard; turns into index and manifest.

    Args:
        split: none until the first record says it.
        exif: which pixels of images with an EXIF orientation sizes and boxes refer to: ``stored``, ``upright``; none refuses such images.
        features: what they are, of a set that holds frozen features in place of media.
        groups: what they are, of a set that holds groups of its clouds' points.
    """

    def __init__(
        self,
        modality: str,
        split: str | None,
        exif: str | None,
        features: FeatureSet | None = None,
        groups: GroupSet | None = None,
    ) -> None:
        if exif not in (None, *EXIF_CHOICES):
            raise ValueError(f"exif {exif!r} is not one of {', '.join(EXIF_CHOICES)}")
        self.modality = modality
        self.exif = exif
        self.features = features
        self.groups = groups
        self.split = split
        self.sample_kind: str | None = None  # said by the first record
        self.builder = IndexBuilder(modality)
        self.shards: list[ShardEntry] = []
        self._seen: set[int] = set()

    def check(self, record: Record, media: bytes, extension: str, where: str, groups: bytes | None = None) -> None:
        """``FormatError`` unless this record and its media fit the format, the modality, the split and the records before."""
        source = source_of(self.modality)
        check_record(record, self.modality, where)
        readable = source.extensions if self.features is None else (FEATURES_EXTENSION,)
        if extension not in readable:
            raise FormatError(
                f"{where}: media {extension!r} does not fit a set of {self.modality}: it holds {', '.join(readable)}"
            )
        if self.split is None:
            self.split = record.split
        if record.split != self.split:
            raise FormatError(
                f"{where}: split {record.split!r} in a set of {self.split!r}; one manifest holds one split"
            )
        kind = _kind(record)
        if self._seen and kind != self.sample_kind:
            raise FormatError(
                f"{where}: a record of {kind or 'captions'} in a set of {self.sample_kind or 'captions'}; make two sets of them"
            )
        stored = Stored(media, record.size, where, self.exif, stored_groups(groups, self.groups, where))
        if self.features is not None:  # boxes were looked at when the sources were
            decode_features(stored, self.features, source.frame_numbers)
            return
        source.check(stored)
        source.check_regions(stored, [item.box for item in record.objects])

    def check_whole(self, record: Record, media: bytes, where: str) -> None:
        """``FormatError`` unless the media can be read to their end; features were."""
        if self.features is None:
            source_of(self.modality).check_whole(Stored(media, record.size, where, self.exif))

    def accept(self, record: Record, media: bytes, extension: str, groups: bytes | None = None) -> tuple[str, bytes]:
        """Check and remember a record that is written now: its media's extension and its ``KEY.json`` as they are stored.

        Raises:
            UnfitRecordError: it does not fit; nothing is remembered of it.
            FormatError: its source came before.
        """
        extension = extension.lower().lstrip(".")
        where = f"record {record.source_id!r}"
        try:
            self.check(record, media, extension, where, groups)
        except FormatError as error:
            raise UnfitRecordError(str(error)) from None
        text = record.to_json()
        if b"\\ud" in text:  # half a character, perhaps, which no reader of the shard would take
            _parse_own(text, where)
        size = record_size(media, text, groups)
        if size > MAX_RECORD_BYTES:
            raise UnfitRecordError(
                f"{where}: {size:,} bytes, a record has at most {MAX_RECORD_BYTES:,}; shrink its image or cloud"
            )
        self.remember(record, where)
        return extension, text

    def holds(self, source_id: str) -> bool:
        """Whether a record of this source was remembered."""
        return (
            digest64(source_id.encode("utf-8", "surrogatepass")) in self._seen
        )  # also of an id that no record can have

    def remember(self, record: Record, where: str) -> None:
        """``FormatError`` if this source id came before."""
        key = digest64(record.source_id.encode())
        if key in self._seen:
            raise FormatError(
                f"{where}: source_id {record.source_id!r} comes twice; put everything said of a source into one record"
            )
        if not self._seen:
            self.sample_kind = _kind(record)
        self._seen.add(key)

    def checked(self, path: Path, workers: int) -> Iterator[FoundRecord]:
        """Every record of a tar that others made, after all checks; media are decoded by threads."""

        def found_fit() -> Iterator[FoundRecord]:
            for found in scan_shard(path):
                self.check(found.record, found.media, found.extension, found.where, found.groups)
                self.remember(found.record, found.where)
                yield found

        def decode(found: FoundRecord) -> None:
            self.check_whole(found.record, found.media, found.where)

        return (found for found, _ in in_order(decode, found_fit(), workers, ahead=workers + 1))

    def add_shard(self, path: Path, records: Iterable[FoundRecord]) -> None:
        """Index a finished tar. ``records``: all of it, checked."""
        digest = hashlib.sha256()
        before, end = self.builder.num_records, 0
        with path.open("rb") as file:
            for found in records:
                self.builder.add(found.record, len(self.shards), found.offset, found.data)
                digest.update(file.read(found.offset - end))
                digest.update(found.data)
                end = found.offset + len(found.data)
                file.seek(end)
            while piece := file.read(1 << 20):
                digest.update(piece)
        self.shards.append(
            ShardEntry(path.name, path.stat().st_size, digest.hexdigest(), self.builder.num_records - before)
        )

    def finish(self, folder: Path, name: str, rejected: dict[str, int]) -> Manifest:
        """Write the index, then the manifest, into ``folder``."""
        if not self.builder.num_samples:
            left_out = (
                ", ".join(f"{reason}: {count}" for reason, count in rejected.items())
                or "the raw files hold none of this split"
            )
            raise FormatError(f"{name}, split {self.split!r}: no record could be used ({left_out})")
        assert self.split is not None
        entry = self.builder.write(folder / INDEX_FILE, len(self.shards))
        counts = {
            "records": self.builder.num_records,
            "objects": self.builder.num_objects,
            "samples": self.builder.num_samples,
        }
        manifest = Manifest(
            FORMAT_VERSION,
            name,
            self.modality,
            self.split,
            counts,
            rejected,
            self.shards,
            entry,
            self.exif,
            self.sample_kind,
            self.features,
            self.groups,
        )
        write_whole(folder / MANIFEST_FILE, manifest.to_json())
        return manifest


def record_size(media: bytes, text: bytes, groups: bytes | None) -> int:
    """Bytes of a record in its tar, at most."""
    return sum(len(member) + MEMBER_OVERHEAD for member in (media, text, groups) if member is not None)


def _parse_own(text: bytes, where: str) -> None:
    try:
        parse(text, where, "reject it")
    except FormatError as error:
        raise UnfitRecordError(str(error)) from None


def _kind(record: Record) -> str | None:
    """What a record's samples are, as ``Manifest.sample_kind``."""
    return QUESTIONS if record.questions else None


def adopt(
    folder: Path,
    modality: str,
    name: str | None = None,
    overwrite: bool = False,
    exif: str | None = None,
    workers: int = 1,
) -> Manifest:
    """Index the WebDataset tars of ``folder`` that others made: reads and checks every record, writes index and manifest.

    The tars stay as they are; their members must be records as docs/formats.md describes.

    Args:
        name: of the set; default: the folder's, or that of a manifest that is replaced.
        overwrite: replace an older index and manifest. The same shards give the same manifest again.
        exif: as of ``ShardWriter``.
        workers: threads that decode.
    """
    folder = Path(folder)
    tars = [path for path in sorted(folder.glob("*.tar")) if not path.name.startswith("._")]  # macOS's beside each file
    if not tars:
        raise ValueError(
            f"{folder}: holds no .tar file; give the folder of the shards (compressed tars must be unpacked to .tar)"
        )
    file, older = folder / MANIFEST_FILE, None
    if file.exists():
        if not overwrite:
            raise ValueError(f"{file}: exists already; say --overwrite to index the folder again")
        with contextlib.suppress(ValueError):  # of a damaged one nothing is kept
            older = read_manifest(file)
    collector = Collector(modality, None, exif, older.features if older else None, older.groups if older else None)
    for path in progress.bar(tars, desc="indexing", unit="shard", delay=5):
        collector.add_shard(path, collector.checked(path, workers))
    return collector.finish(
        folder, name or (older.name if older else folder.resolve().name), older.rejected if older else {}
    )


def verify_shards(place: Location) -> Manifest:
    """Compare every shard of a manifest with its sha256; ``ShardCorruptionError`` lists those that differ."""
    path = find_manifest(place)
    manifest = read_manifest(path)
    files = shard_files(path, manifest)
    total = sum(entry.bytes for entry in manifest.shards) + manifest.index.bytes
    wrong = []
    with progress.bar(total=total, desc="verifying", unit="B", unit_scale=True, delay=5) as bar:
        for name, sha256 in [(e.file, e.sha256) for e in manifest.shards] + [
            (manifest.index.file, manifest.index.sha256)
        ]:
            folder, size = path.parent, files.size(name)
            if size is None:
                wrong.append(f"{name} (missing)")
            elif sha256 != (
                stored_sha256(folder, name, size, bar.update)
                if isinstance(folder, Url)
                else file_sha256(folder / name, bar.update)
            ):
                wrong.append(f"{name} (altered)")
    if wrong:
        raise ShardCorruptionError(
            f"{path}: {len(wrong)} files are not as written: {', '.join(wrong)}; bring them back, or prepare the set again"
        )
    return manifest
