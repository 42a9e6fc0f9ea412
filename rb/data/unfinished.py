"""The folder of a set of shards while it is written: hidden beside the set's place, locked, and kept after a kill.

``.NAME.unfinished`` holds the shards so far. Where the writer has a key (what is converted, and from which files), each closed shard is
followed by ``state.json``, which says how far the work was; the same key finds the finished shards again and goes on behind them. Shards
are compared with their digests first. Another key, or an altered shard, begins from nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rb.core import progress
from rb.core import strict_json as strict
from rb.core.files import file_sha256, naming, publish_folder, sha256, write_json
from rb.core.locks import FileLock
from rb.core.output import note
from rb.core.strict_json import FormatError, checked
from rb.data.formats import REJECTED_FILE, SHARD_FIELDS, ShardEntry

STATE_FILE = "state.json"
PREPARED_FILE = "prepared.json"  # beside a finished set's manifest: the work that made it
_FIELDS: dict[str, strict.Check] = {
    "key": strict.name,
    "position": strict.count,
    "rejected_bytes": strict.count,
    "rejected": strict.counts,
    "counts": strict.anything,
    "shards": strict.items,
}


@dataclass(frozen=True)
class Work:
    """What a set is made from: ``about`` says what was asked for, ready for JSON; ``files`` are the annotation files.

    Images and clouds are not in the key: there may be millions, and those in finished shards are kept as they were read.
    """

    about: Mapping[str, Any]
    files: Sequence[Path] = ()

    @property
    def key(self) -> str:
        """Digest of ``about`` and of the name, size and time of every file."""
        found = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in self.files]
        return sha256(json.dumps([self.about, found], sort_keys=True))

    def made(self, out: Path) -> bool:
        """Whether the finished set in ``out`` was made by this very work."""
        try:
            found = strict.read(out / PREPARED_FILE)
        except (OSError, ValueError):
            return False
        return isinstance(found, dict) and found.get("key") == self.key

    def write(self, folder: Path) -> None:
        """``prepared.json`` into ``folder``."""
        write_json(folder / PREPARED_FILE, {"key": self.key, **self.about, "files": [str(path) for path in self.files]})


@dataclass(frozen=True)
class State:
    """How far a conversion was when a shard was closed.

    Attributes:
        position: items (images, clouds, scenes) that were done; their records are in the shards.
        rejected_bytes: length of ``rejected.jsonl`` then; ``rejected``: its rows by reason.
        counts: the converter's own.
    """

    key: str
    position: int
    rejected_bytes: int
    rejected: dict[str, int]
    counts: dict[str, Any]
    shards: list[ShardEntry]


class UnfinishedSet:
    """The folder that becomes ``out`` when it is complete.

    Args:
        work: what it is made from; none for a set whose making cannot go on after a kill.
    """

    def __init__(self, out: Path, work: Work | None) -> None:
        self.out, self.work = out, work
        self.key = work.key if work else None
        self.folder = out.with_name(f".{out.name}.unfinished")
        self._lock = FileLock(out.with_name(f".{out.name}.lock"))
        self._saved = False
        self._parents: list[Path] = []  # that were not there

    def open(self) -> State | None:
        """Lock the folder and make it; the state of an earlier process with the same key, whose shards are whole.

        Raises:
            ValueError: another process is writing the same set.
        """
        self._parents = [path for path in self.out.parents if not path.exists()]
        self.out.parent.mkdir(parents=True, exist_ok=True)
        if not self._lock.acquire() or not self._lock.in_place():
            raise ValueError(f"{self.out}: {self._lock.owner()} is writing it; wait for it, or choose another folder")
        state = self._earlier()
        if state is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            with naming(self.out, self.folder):
                self.folder.mkdir()
            return None
        self._saved = True
        known = {STATE_FILE, REJECTED_FILE, *(entry.file for entry in state.shards)}
        for path in self.folder.iterdir():  # the shard that was being written
            if path.name not in known:
                path.unlink()
        note(
            f"{self.out}: goes on after {state.position:,} items; {len(state.shards)} finished shards are kept and verified"
        )
        return state

    def save(self, state: State) -> None:
        """Remember ``state``; its shards and rejected rows are on the disk already."""
        write_json(self.folder / STATE_FILE, asdict(state))
        self._saved = True

    def finish(self) -> None:
        """The complete set takes its place, and that of an older one."""
        if self.work is not None:
            self.work.write(self.folder)
        (self.folder / STATE_FILE).unlink(missing_ok=True)
        publish_folder(self.folder, self.out, replace=True)
        self._let_go()

    def leave(self, error: BaseException) -> None:
        """After ``error``: keep finished shards where the same command can go on, else remove everything.

        A ``ValueError`` is about the request or the raw files, which have to change: nothing is kept.
        """
        if self._saved and not isinstance(error, ValueError):
            note(f"{self.out}: the finished shards are kept in {self.folder}; the same command goes on from there")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._let_go()
        with suppress(OSError):  # something else is in it by now
            for path in self._parents:
                path.rmdir()

    def _let_go(self) -> None:
        with suppress(OSError):
            self._lock.path.unlink()
        self._lock.release()

    def _earlier(self) -> State | None:
        """The state in the folder, if it is this work's and every shard is as it was written."""
        file = self.folder / STATE_FILE
        if self.key is None or not file.is_file():
            return None
        try:
            raw = dict(checked(strict.read(file), str(file), _FIELDS))
            raw["shards"] = [ShardEntry(**checked(item, str(file), SHARD_FIELDS)) for item in raw["shards"]]
            state = State(**raw)
        except (FormatError, OSError):
            return None
        if state.key != self.key:
            note(f"{self.folder}: was begun with other options, raw files or another version; begins again")
            return None
        sizes = [entry.bytes for entry in state.shards]
        with progress.bar(total=sum(sizes), desc="verifying", unit="B", unit_scale=True, delay=5) as bar:
            for entry in state.shards:
                path = self.folder / Path(entry.file).name
                if not path.is_file() or file_sha256(path, bar.update) != entry.sha256:
                    note(f"{path}: is not as it was written; begins again")
                    return None
        rejected = self.folder / REJECTED_FILE
        return state if rejected.is_file() and rejected.stat().st_size >= state.rejected_bytes else None
