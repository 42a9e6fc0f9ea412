"""Identity of large files: names and sha256 of every byte, computed once per file and machine.

A digest is kept in ``$XDG_CACHE_HOME/regionblip/sha256/`` (or ``~/.cache``) under the file's path, size, modification time and inode, so
only a file that changed is read again. Several processes (the ranks of a host) share the work by a lock. A cache that cannot be written
costs time, never correctness.

Fingerprints of commit 18c6373 and before covered size, first and last MiB only; they are still compared, and called weaker.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from rb.core import heartbeat
from rb.core.files import file_sha256, sha256, write_whole
from rb.core.locks import locked
from rb.core.strict_json import read

PREFIX = "sha256:"  # of today's fingerprints; those without it are the weaker ones
_EDGE = 1 << 20
_MOST_ENTRIES = 1000
_SETTLED_S = 2.0  # a file that was just written may change again within one tick of its file system's clock
_MOST_THREADS = 8
_read_here: dict[tuple[int | str, ...], str] = {}  # state of a file that this process has read whole -> its digest


def fingerprint(paths: Sequence[Path]) -> str:
    """The identity of files: the sha256 of their names and contents, whatever their folder. Files are read in parallel."""
    ordered = sorted(paths)
    with ThreadPoolExecutor(max_workers=max(1, min(_MOST_THREADS, os.cpu_count() or 1, len(ordered)))) as pool:
        digests = []
        for digest in pool.map(cached_sha256, ordered):
            digests.append(digest)
            heartbeat.beat()
    return PREFIX + sha256("".join(f"{path.name}:{digest};" for path, digest in zip(ordered, digests, strict=True)))


def is_weaker(recorded: str) -> bool:
    """Whether a recorded fingerprint covers only parts of its files."""
    return not recorded.startswith(PREFIX)


def weaker_fingerprint(paths: Sequence[Path]) -> str:
    """The identity that commit 18c6373 recorded: names, sizes, first and last MiB of each file."""
    state = hashlib.sha256()
    for path in sorted(paths):
        size = path.stat().st_size
        state.update(f"{path.name}:{size};".encode())
        with path.open("rb") as file:
            state.update(file.read(_EDGE))
            if size > _EDGE:
                file.seek(max(_EDGE, size - _EDGE))
                state.update(file.read(_EDGE))
    return state.hexdigest()


def cached_sha256(path: Path) -> str:
    """sha256 of a file; from the cache if the file is the one that was hashed."""
    path = path.resolve()
    known = _read_here.get(tuple(_state(path)))
    if known:
        return known
    entry = _entry(path)
    if entry is None:
        return file_sha256(path)
    known = _read(entry, path)
    if known:
        return known
    with _one_at_a_time(entry):
        known = _read(entry, path)  # another rank may have done it meanwhile
        if known:
            return known
        state = _state(path)
        digest = file_sha256(path)
        if state == _state(path) and time.time_ns() - path.stat().st_mtime_ns > _SETTLED_S * 1e9:
            with suppress(OSError):
                write_whole(entry, json.dumps({"state": state, "sha256": digest}) + "\n")
                _forget_old(entry.parent)
        return digest


def read_and_note(path: Path) -> bytes:
    """A small file's content; ``cached_sha256`` does not open it again in this process."""
    path = path.resolve()
    state = _state(path)
    content = path.read_bytes()
    if state == _state(path):
        _read_here[tuple(state)] = sha256(content)
    return content


def cache_folder() -> Path:
    """Where digests are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regionblip" / "sha256"


def _entry(path: Path) -> Path | None:
    """The cache's file for a path; none if there can be no cache."""
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, read-only, not a folder
        return None
    return folder / f"{sha256(os.fsencode(path))[:40]}.json"


def _state(path: Path) -> list[int | str]:
    found = path.stat()
    return [str(path), found.st_size, found.st_mtime_ns, found.st_ino]


def _read(entry: Path, path: Path) -> str:
    """The digest kept for the file as it is now; empty if there is none."""
    try:
        kept = read(entry)
        return str(kept["sha256"]) if kept["state"] == _state(path) else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


@contextmanager
def _one_at_a_time(entry: Path) -> Iterator[None]:
    path = entry.with_suffix(".lock")
    try:
        file = path.open("w")
    except OSError:  # a read-only cache: each process hashes for itself
        yield
        return
    with file, locked(file.fileno(), path):
        yield


def _forget_old(folder: Path) -> None:
    """Keep the newest entries."""
    entries = sorted(folder.glob("*.json"), key=lambda entry: entry.stat().st_mtime)
    for entry in entries[: max(0, len(entries) - _MOST_ENTRIES)]:
        for file in (entry, entry.with_suffix(".lock")):
            file.unlink(missing_ok=True)
