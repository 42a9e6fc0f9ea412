"""Writing sets of shards: plain WebDataset tars, the index beside them and the manifest last, all or nothing.

The same records give the same bytes, also where a conversion was killed and went on. Converters (`rb/data/prepare`) use `ShardWriter`, or
`DryRun` to check everything and write nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

from rb.core.files import naming, write_whole
from rb.core.modality import modality_spec
from rb.core.urls import Location
from rb.data.formats import (
    MANIFEST_FILE,
    RECORD_EXTENSION,
    REJECTED_FILE,
    FormatError,
    Manifest,
    Record,
    Rejected,
    ShardEntry,
    read_rejected,
    rejected_row,
)
from rb.data.shards import Collector, record_size
from rb.data.tars import FoundRecord, scan_shard
from rb.data.unfinished import State, UnfinishedSet, Work
from rb.sources.feature_set import FeatureSet
from rb.sources.groups import EXTENSION as GROUPS_EXTENSION
from rb.sources.groups import GroupSet

_SHOWN = 3  # items that the error of an empty result names


class SetWriter(Protocol):
    """What a converter writes to."""

    @property
    def scratch(self) -> Path:
        """A folder for temporary files of the converter: on the disk that the set will be on."""

    def begin(self) -> State | None:
        """The state from which the work goes on; what is rejected before this call was rejected by the earlier process too."""

    def mark(self, position: int, counts: Mapping[str, Any]) -> None:
        """Item number ``position`` begins; it makes at most one record. ``counts``: the converter's own so far."""

    def write(self, record: Record, media: bytes, extension: str) -> None:
        """One record."""

    def reject(self, source: str, reason: str, detail: str, object_id: str | None = None) -> None:
        """A source, or one of its objects, that cannot be used. ``reason``: a short fixed word that is counted."""

    def holds(self, source_id: str) -> bool:
        """Whether a record of this source was written."""


class ShardWriter:
    """Writes one manifest's folder, as a context manager; a ``SetWriter``.

    Everything is written into a hidden folder beside ``out_dir``, which gets its name when all is done: after an error, or a kill,
    there is nothing under ``out_dir``.

    Args:
        name: of the data set, and of its shards: ``NAME-000000.tar``.
        overwrite: replace an older set in ``out_dir`` (only a folder with a manifest).
        exif: which pixels of images with an EXIF orientation sizes and boxes refer to: ``stored``, ``upright``; none refuses such images.
        work: what the set is made from: after a kill, a writer of the same work goes on behind the last closed shard.
        features: what they are, of a set that holds frozen features in place of media.
        groups: what they are, of a set that holds groups of its clouds' points.

    Raises:
        ValueError: ``out_dir`` is not empty, or another process is writing it.
    """

    def __init__(  # noqa: PLR0913 (a set has so many properties)
        self,
        out_dir: Path,
        name: str,
        modality: str,
        split: str,
        max_shard_bytes: int = 500_000_000,
        max_shard_records: int = 100_000,
        overwrite: bool = False,
        exif: str | None = None,
        work: Work | None = None,
        features: FeatureSet | None = None,
        groups: GroupSet | None = None,
    ) -> None:
        modality_spec(modality)
        if not name or Path(name).name != name or name.startswith("."):
            raise ValueError(f"name {name!r} cannot name a file; use letters, digits and hyphens")
        if max_shard_bytes < 1 or max_shard_records < 1:
            raise ValueError(
                f"max_shard_bytes {max_shard_bytes} and max_shard_records {max_shard_records} must be at least 1"
            )
        self.out_dir, self.name = Path(out_dir), name
        if (
            self.out_dir.is_symlink() or not self.out_dir.name
        ):  # a link stays, and its disk is the one that is written to
            self.out_dir = self.out_dir.resolve()
        self.max_shard_bytes, self.max_shard_records = max_shard_bytes, max_shard_records
        self.overwrite = overwrite
        self.manifest: Manifest | None = None
        self._check_target()
        self._unfinished = UnfinishedSet(self.out_dir, work)
        self._collector = Collector(modality, split, exif, features, groups)
        self._rejected: Counter[str] = Counter()
        self._shown: dict[str, list[Rejected]] = {}  # a few of each reason, for the error where nothing can be used
        self._file: BinaryIO | None = None  # the shard that is written, and its digest so far
        self._digest = hashlib.sha256()
        self._bytes = self._in_shard = self._rejected_bytes = 0
        self._earlier: State | None = None  # until ``begin`` is called
        self._item: State | None = None  # as it was when the item under way began
        self._item_written = False

    def __enter__(self) -> ShardWriter:
        self._earlier = self._unfinished.open()
        self._folder = self._unfinished.folder
        self._rejects = (self._folder / REJECTED_FILE).open("a", encoding="ascii")
        if self._earlier is None:
            return self
        try:
            self._rejected_bytes = self._rejects.truncate(self._earlier.rejected_bytes)
            self._rejected.update(self._earlier.rejected)
            for entry in self._earlier.shards:
                self._adopt(self._folder / entry.file)
        except BaseException as error:
            self._rejects.close()
            self._unfinished.leave(error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._finish()
        except BaseException as late:
            error = late
            raise
        finally:
            self._close_files()
            if error is not None:
                self._unfinished.leave(error)

    @property
    def scratch(self) -> Path:
        """As of ``SetWriter``."""
        return self._unfinished.folder

    @property
    def num_records(self) -> int:
        """Records written so far."""
        return self._collector.builder.num_records

    @property
    def rejected(self) -> dict[str, int]:
        """Rejections so far, by reason."""
        return dict(sorted(self._rejected.items()))

    def begin(self) -> State | None:
        """As of ``SetWriter``."""
        earlier, self._earlier = self._earlier, None
        return earlier

    def mark(self, position: int, counts: Mapping[str, Any]) -> None:
        """As of ``SetWriter``."""
        self._item = State(self._unfinished.key or "", position, self._rejected_bytes, self.rejected, dict(counts), [])
        self._item_written = False

    def holds(self, source_id: str) -> bool:
        """As of ``SetWriter``."""
        return self._collector.holds(source_id)

    def write(self, record: Record, media: bytes, extension: str, groups: bytes | None = None) -> None:
        """One record. ``extension``: of ``media``, one of its source's (``rb/sources``): ``jpg``, ``points.npy``, ... ``groups``: of its points.

        Raises:
            FormatError: the record does not fit; a converter should have rejected it. Nothing was written of it.
        """
        extension, text = self._collector.accept(record, media, extension, groups)
        size = record_size(media, text, groups)
        if self._in_shard and (self._in_shard >= self.max_shard_records or self._bytes + size > self.max_shard_bytes):
            self._close_shard()
        if self._file is None:
            self._file = (self._folder / f"{self.name}-{len(self._collector.shards):06d}.tar").open("wb")
        # A running number as the key: a source id may hold dots and slashes, which mean something to tar and WebDataset.
        more = {} if groups is None else {GROUPS_EXTENSION: groups}
        members = {extension: media, **more, RECORD_EXTENSION: text}
        data = b"".join(_member(f"{self.num_records:09d}.{name}", content) for name, content in sorted(members.items()))
        self._collector.builder.add(record, len(self._collector.shards), self._file.tell(), data)
        self._append(data)
        self._in_shard += 1
        self._bytes += size
        assert self._item is None or not self._item_written, "an item makes at most one record"
        self._item_written = True

    def reject(self, source: str, reason: str, detail: str, object_id: str | None = None) -> None:
        """As of ``SetWriter``."""
        if self._earlier is not None:  # the earlier process wrote this row
            return
        row = Rejected(source, object_id, reason, detail)
        self._rejected_bytes += self._rejects.write(rejected_row(row))
        self._rejected[reason] += 1
        if self._rejected[reason] <= _SHOWN:
            self._shown.setdefault(reason, []).append(row)

    def reject_as(self, manifest: Location) -> None:
        """Whatever the set at ``manifest`` rejected: for a set that is made of it."""
        for row in read_rejected(manifest.parent / REJECTED_FILE):
            self.reject(row.source, row.reason, row.detail, row.object_id)

    def _check_target(self) -> None:
        if not self.out_dir.exists():
            return
        if self.out_dir.is_dir() and {path.name for path in self.out_dir.iterdir()} <= {REJECTED_FILE}:
            return  # empty, or what an empty result left
        if not self.out_dir.is_dir():
            raise ValueError(f"{self.out_dir}: is a file; choose another name for the folder of shards")
        if not self.overwrite:
            if (self.out_dir / MANIFEST_FILE).is_file():
                raise ValueError(
                    f"{self.out_dir}: holds a set of shards already; replace it with --overwrite, or choose another folder"
                )
            raise ValueError(f"{self.out_dir}: is not empty; choose another folder, or remove it first")
        if not (self.out_dir / MANIFEST_FILE).is_file():
            raise ValueError(
                f"{self.out_dir}: is not a folder of shards (no {MANIFEST_FILE}), so it is not overwritten; choose another folder"
            )

    def _adopt(self, shard: Path) -> None:
        """A shard that an earlier process finished."""

        def remembered() -> Iterator[FoundRecord]:
            for item in scan_shard(shard):
                self._collector.remember(item.record, item.where)
                yield item

        self._collector.add_shard(shard, remembered())

    def _append(self, data: bytes) -> None:
        assert self._file is not None
        with naming(self.out_dir, self._folder):
            self._file.write(data)
        self._digest.update(data)

    def _close_shard(self) -> None:
        assert self._file is not None
        end = self._file.tell() + 2 * tarfile.BLOCKSIZE
        self._append(bytes(2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE))
        with naming(self.out_dir, self._folder):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        path = Path(self._file.name)
        entry = ShardEntry(path.name, path.stat().st_size, self._digest.hexdigest(), self._in_shard)
        self._collector.shards.append(entry)
        self._file, self._digest = None, hashlib.sha256()
        self._bytes = self._in_shard = 0
        if self._item is not None and self._unfinished.key is not None:
            self._rejects.flush()
            os.fsync(self._rejects.fileno())
            self._unfinished.save(dataclasses.replace(self._item, shards=list(self._collector.shards)))

    def _finish(self) -> None:
        self._item = None  # its record is in the last shard
        if self._file is not None:
            self._close_shard()
        self._rejects.close()
        if self._rejected and not self._collector.builder.num_samples:
            raise FormatError(self._nothing_used())
        self.manifest = self._collector.finish(self._folder, self.name, self.rejected)
        self._check_target()
        self._unfinished.finish()

    def _nothing_used(self) -> str:
        """The error of an empty result: counts, three items of different reasons where there are, the commonest first, and where all are."""
        kept = self.out_dir / REJECTED_FILE
        if (self.out_dir / MANIFEST_FILE).exists():  # an older set stays as it is
            kept = self.out_dir.with_name(f"{self.out_dir.name}.{REJECTED_FILE}")
        kept.parent.mkdir(exist_ok=True)
        write_whole(kept, (self._folder / REJECTED_FILE).read_bytes())
        shown = [self._shown[reason] for reason, _ in self._rejected.most_common() if reason in self._shown]
        by_turns = itertools.chain.from_iterable(itertools.zip_longest(*shown))
        rows = list(itertools.islice((row for row in by_turns if row is not None), _SHOWN))
        names = [row.source if row.object_id is None else f"{row.source}, object {row.object_id}" for row in rows]
        items = "\n".join(f"  {name}: {row.reason}: {row.detail}" for name, row in zip(names, rows, strict=True))
        counts = ", ".join(f"{reason}: {count}" for reason, count in self.rejected.items())
        return (
            f"{self.name}, split {self._collector.split!r}: no record could be used ({counts}), such as\n{items}\n"
            f"All of them are in {kept}"
        )

    def _close_files(self) -> None:
        with contextlib.suppress(OSError):  # after a full disk the rest cannot be written
            self._rejects.close()
            if self._file is not None:
                self._file.close()


def _head(mtime: float) -> tarfile.TarInfo:
    """Of a member without name and size, of fixed owner, mode and time: the same records give the same bytes."""
    head = tarfile.TarInfo()
    head.mode, head.uname, head.gname, head.mtime = 0o444, "rb", "rb", mtime
    return head


# Before each member stands its time as a setting, as webdataset's writer has it.
_TIME_ZERO = _head(0.0).tobuf(tarfile.PAX_FORMAT)[: 2 * tarfile.BLOCKSIZE]
_HEAD = _head(0).tobuf(tarfile.USTAR_FORMAT)
_SIZE, _SUM = slice(124, 135), slice(148, 156)  # fields of a header, in octal digits


def _member(name: str, content: bytes) -> bytes:
    """A file as it lies in a tar, byte by byte as webdataset's ``TarWriter`` writes it, in a fraction of the time."""
    head = bytearray(_HEAD)
    head[: len(name)] = name.encode("ascii")
    head[_SIZE] = b"%011o" % len(content)
    head[_SUM] = b" " * 8  # while it is taken
    head[_SUM] = b"%06o\0 " % sum(head)
    return b"".join((_TIME_ZERO, head, content, bytes(-len(content) % tarfile.BLOCKSIZE)))


class DryRun:
    """A ``SetWriter`` that checks every record as ``ShardWriter`` does and writes nothing; a context manager like it."""

    def __init__(self, modality: str, split: str, exif: str | None = None) -> None:
        self._collector = Collector(modality, split, exif)

    @property
    def scratch(self) -> Path:
        """The system's folder for temporary files (``TMPDIR``)."""
        return Path(tempfile.gettempdir())

    def __enter__(self) -> DryRun:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def begin(self) -> None:
        """As of ``SetWriter``."""

    def mark(self, position: int, counts: Mapping[str, Any]) -> None:
        """As of ``SetWriter``."""

    def holds(self, source_id: str) -> bool:
        """As of ``SetWriter``."""
        return self._collector.holds(source_id)

    def write(self, record: Record, media: bytes, extension: str) -> None:
        """As of ``ShardWriter``."""
        self._collector.accept(record, media, extension)

    def reject(self, source: str, reason: str, detail: str, object_id: str | None = None) -> None:
        """As of ``SetWriter``."""
