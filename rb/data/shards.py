"""Writing shards: plain WebDataset tars, the index beside them and the manifest last, all or nothing; and adopting others' tars.

The same records give the same bytes. Converters (`rb/data/prepare`) use `ShardWriter`; `rb data index` uses `adopt`, `rb data verify` uses
`verify_shards`.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from webdataset import TarWriter

from rb.core import progress
from rb.core.files import digest64, file_sha256, whole_folder, write_whole
from rb.core.modality import modality_spec
from rb.core.threads import in_order
from rb.data.check_record import check_record
from rb.data.formats import (
    FORMAT_VERSION,
    INDEX_FILE,
    MANIFEST_FILE,
    MAX_RECORD_BYTES,
    RECORD_EXTENSION,
    REJECTED_FILE,
    FormatError,
    Manifest,
    Record,
    Rejected,
    ShardEntry,
    find_manifest,
    read_manifest,
    rejected_row,
)
from rb.data.index import IndexBuilder, ShardCorruptionError
from rb.data.tars import FoundRecord, scan_shard
from rb.sources.pixels import EXIF_CHOICES
from rb.sources.source import Stored
from rb.sources.table import source_of

_MEMBER_OVERHEAD = 2 * 512  # header and padding, at most
_SHOWN = 3  # items that the error of an empty result names


class _Collector:
    """What shards hold, gathered shard by shard; turns into index and manifest."""

    def __init__(self, modality: str, split: str | None, exif: str | None) -> None:
        if exif not in (None, *EXIF_CHOICES):
            raise ValueError(f"exif {exif!r} is not one of {', '.join(EXIF_CHOICES)}")
        self.modality = modality
        self.exif = exif
        self.split = split
        self.builder = IndexBuilder(modality)
        self.shards: list[ShardEntry] = []
        self._seen: set[int] = set()

    def check(self, record: Record, media: bytes, extension: str, where: str) -> None:
        """``FormatError`` unless this record and its media fit the format, the modality, the split and the records before."""
        source = source_of(self.modality)
        check_record(record, self.modality, where)
        if extension not in source.extensions:
            raise FormatError(
                f"{where}: media {extension!r} does not fit {self.modality}: it reads {', '.join(source.extensions)}"
            )
        if self.split is None:
            self.split = record.split
        if record.split != self.split:
            raise FormatError(
                f"{where}: split {record.split!r} in a set of {self.split!r}; one manifest holds one split"
            )
        stored = Stored(media, record.size, where, self.exif)
        source.check(stored)
        source.check_regions(stored, [item.box for item in record.objects])

    def check_whole(self, record: Record, media: bytes, where: str) -> None:
        """``FormatError`` unless the media can be read to their end."""
        source_of(self.modality).check_whole(Stored(media, record.size, where, self.exif))

    def remember(self, record: Record, where: str) -> None:
        """``FormatError`` if this source id came before."""
        key = digest64(record.source_id.encode())
        if key in self._seen:
            raise FormatError(
                f"{where}: source_id {record.source_id!r} comes twice; put everything said of a source into one record"
            )
        self._seen.add(key)

    def checked(self, path: Path, workers: int) -> Iterator[FoundRecord]:
        """Every record of a tar that others made, after all checks; media are decoded by threads."""

        def found_fit() -> Iterator[FoundRecord]:
            for found in scan_shard(path):
                self.check(found.record, found.media, found.extension, found.where)
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
            FORMAT_VERSION, name, self.modality, self.split, counts, rejected, self.shards, entry, self.exif
        )
        write_whole(folder / MANIFEST_FILE, manifest.to_json())
        return manifest


class ShardWriter:
    """Writes one manifest's folder, as a context manager.

    Everything is written into a hidden folder beside ``out_dir``, which gets its name when all is done: after an error, or a kill,
    there is nothing under ``out_dir``.

    Args:
        name: of the data set, and of its shards: ``NAME-000000.tar``.
        overwrite: replace an older set in ``out_dir`` (only a folder with a manifest).
        exif: which pixels of images with an EXIF orientation sizes and boxes refer to: ``stored``, ``upright``; none refuses such images.

    Raises:
        ValueError: ``out_dir`` is not empty.
    """

    def __init__(
        self,
        out_dir: Path,
        name: str,
        modality: str,
        split: str,
        max_shard_bytes: int = 500_000_000,
        max_shard_records: int = 100_000,
        overwrite: bool = False,
        exif: str | None = None,
    ) -> None:
        modality_spec(modality)
        if not name or Path(name).name != name or name.startswith("."):
            raise ValueError(f"name {name!r} cannot name a file; use letters, digits and hyphens")
        if max_shard_bytes < 1 or max_shard_records < 1:
            raise ValueError(
                f"max_shard_bytes {max_shard_bytes} and max_shard_records {max_shard_records} must be at least 1"
            )
        self.out_dir, self.name = Path(out_dir), name
        self.max_shard_bytes, self.max_shard_records = max_shard_bytes, max_shard_records
        self.overwrite = overwrite
        self.manifest: Manifest | None = None
        self._check_target()
        self._whole = whole_folder(self.out_dir, replace=True)
        self._collector = _Collector(modality, split, exif)
        self._rejected: Counter[str] = Counter()
        self._shown: dict[str, list[Rejected]] = {}  # a few of each reason, for the error where nothing can be used
        self._tar: TarWriter | None = None
        self._file: BinaryIO | None = None
        self._bytes = self._in_shard = self._number = 0

    def __enter__(self) -> ShardWriter:
        self.out_dir.parent.mkdir(parents=True, exist_ok=True)
        self._folder = self._whole.__enter__()
        self._rejects = (self._folder / REJECTED_FILE).open("w", encoding="ascii")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as stack:
            stack.push(self._whole)
            stack.callback(self._close_files)
            if kind is None:
                self._finish()
            elif error is not None:
                raise error

    @property
    def num_records(self) -> int:
        """Records written so far."""
        return self._number

    @property
    def rejected(self) -> dict[str, int]:
        """Rejections so far, by reason."""
        return dict(sorted(self._rejected.items()))

    def write(self, record: Record, media: bytes, extension: str) -> None:
        """One record. ``extension``: of ``media``, one of its source's (``rb/sources``): ``jpg``, ``points.npy``, ...

        Raises:
            FormatError: the record does not fit; a converter should have rejected it. Nothing was written of it.
        """
        extension = extension.lower().lstrip(".")
        where = f"record {record.source_id!r}"
        self._collector.check(record, media, extension, where)
        self._collector.remember(record, where)
        text = record.to_json()
        size = len(media) + len(text) + 2 * _MEMBER_OVERHEAD
        if size > MAX_RECORD_BYTES:
            raise FormatError(
                f"{where}: {size:,} bytes, a record has at most {MAX_RECORD_BYTES:,}; shrink its image or cloud"
            )
        if self._in_shard and (self._in_shard >= self.max_shard_records or self._bytes + size > self.max_shard_bytes):
            self._close_shard()
        if self._tar is None:
            self._file = (self._folder / f"{self.name}-{len(self._collector.shards):06d}.tar").open("wb")
            # Fixed owner, mode and time: the same records give the same bytes.
            self._tar = TarWriter(self._file, user="rb", group="rb", mode=0o444, encoder=False, mtime=0.0)
        # A running number as the key: a source id may hold dots and slashes, which mean something to tar and WebDataset.
        self._tar.write({"__key__": f"{self._number:09d}", extension: media, RECORD_EXTENSION: text})
        self._number += 1
        self._in_shard += 1
        self._bytes += size

    def reject(self, source: str, reason: str, detail: str, object_id: str | None = None) -> None:
        """A source, or one of its objects, that cannot be used. ``reason``: a short fixed word that is counted."""
        row = Rejected(source, object_id, reason, detail)
        self._rejects.write(rejected_row(row))
        self._rejected[reason] += 1
        if self._rejected[reason] <= _SHOWN:
            self._shown.setdefault(reason, []).append(row)

    def _check_target(self) -> None:
        if not self.out_dir.exists():
            return
        if self.out_dir.is_dir() and {path.name for path in self.out_dir.iterdir()} <= {REJECTED_FILE}:
            return  # empty, or what an empty result left
        if not self.overwrite:
            raise ValueError(f"{self.out_dir}: is not empty; choose another folder, or remove it first")
        if not (self.out_dir / MANIFEST_FILE).is_file():
            raise ValueError(
                f"{self.out_dir}: is not a folder of shards (no {MANIFEST_FILE}), so it is not overwritten; choose another folder"
            )

    def _close_shard(self) -> None:
        assert self._tar is not None
        assert self._file is not None
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        path = Path(self._file.name)
        self._collector.add_shard(path, scan_shard(path))  # they were checked when they were written
        self._tar = self._file = None
        self._bytes = self._in_shard = 0

    def _finish(self) -> None:
        if self._tar is not None:
            self._close_shard()
        self._rejects.close()
        if self._rejected and not self._collector.builder.num_samples:
            raise FormatError(self._nothing_used())
        self.manifest = self._collector.finish(self._folder, self.name, self.rejected)
        self._check_target()

    def _nothing_used(self) -> str:
        """The error of an empty result: counts, three items of different reasons where there are, and where all of them are."""
        kept = self.out_dir / REJECTED_FILE
        if (self.out_dir / MANIFEST_FILE).exists():  # an older set stays as it is
            kept = self.out_dir.with_name(f"{self.out_dir.name}.{REJECTED_FILE}")
        kept.parent.mkdir(exist_ok=True)
        write_whole(kept, (self._folder / REJECTED_FILE).read_bytes())
        by_turns = itertools.chain.from_iterable(itertools.zip_longest(*self._shown.values()))
        rows = list(itertools.islice((row for row in by_turns if row is not None), _SHOWN))
        names = [row.source if row.object_id is None else f"{row.source}, object {row.object_id}" for row in rows]
        items = "\n".join(f"  {name}: {row.reason}: {row.detail}" for name, row in zip(names, rows, strict=True))
        counts = ", ".join(f"{reason}: {count}" for reason, count in self.rejected.items())
        return (
            f"{self.name}, split {self._collector.split!r}: no record could be used ({counts}), such as\n{items}\n"
            f"All of them are in {kept}"
        )

    def _close_files(self) -> None:
        with contextlib.suppress(OSError):  # after a full disk the rest cannot be written; the folder is removed anyway
            self._rejects.close()
            if self._tar is not None and self._file is not None:
                self._tar.close()
                self._file.close()


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
    collector = _Collector(modality, None, exif)
    for path in progress.bar(tars, desc="indexing", unit="shard", delay=5):
        collector.add_shard(path, collector.checked(path, workers))
    return collector.finish(
        folder, name or (older.name if older else folder.resolve().name), older.rejected if older else {}
    )


def verify_shards(path: Path) -> Manifest:
    """Compare every shard of a manifest with its sha256; ``ShardCorruptionError`` lists those that differ."""
    path = find_manifest(path)
    manifest = read_manifest(path)
    total = sum(entry.bytes for entry in manifest.shards) + manifest.index.bytes
    wrong = []
    with progress.bar(total=total, desc="verifying", unit="B", unit_scale=True, delay=5) as bar:
        for name, sha256 in [(e.file, e.sha256) for e in manifest.shards] + [
            (manifest.index.file, manifest.index.sha256)
        ]:
            file = path.parent / name
            if not file.is_file():
                wrong.append(f"{name} (missing)")
            elif file_sha256(file, bar.update) != sha256:
                wrong.append(f"{name} (altered)")
    if wrong:
        raise ShardCorruptionError(
            f"{path}: {len(wrong)} files are not as written: {', '.join(wrong)}; bring them back, or prepare the set again"
        )
    return manifest
