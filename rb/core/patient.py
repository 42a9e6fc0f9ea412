"""Writing beside the work: a full disk, a quota, a file that may not be written must not stop a training step.

`PatientLines` is for files that grow by lines (journal, log): what cannot be written now is kept in memory and written in order once there is
room. `attempt` is for a file that is written once (a page): it is left out. Both say once what happens, with the path. Files that a command exists
for are not written with this file but with `rb/core/files.py`, and end the command where they cannot be written.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from rb.core.files import CannotWriteError, naming, why_not_written

T = TypeVar("T")
MOST_KEPT = 64 << 20  # bytes of lines in memory; later ones are lost, and counted

log = logging.getLogger(__name__)
_said: set[str] = set()


class PatientLines:
    """Appends lines to one file, through a function that raises ``OSError`` where the file cannot take them. Thread-safe.

    Args:
        path: of the file, for what is said.
        write: appends one line, whole or not at all.
    """

    def __init__(self, path: Path, write: Callable[[bytes], None]) -> None:
        self._path, self._write = path, write
        self._kept: deque[bytes] = deque()
        self._kept_bytes = self._lost = 0
        self._failing = False
        self._lock = threading.RLock()

    @property
    def num_kept(self) -> int:
        """Lines that are in memory only."""
        return len(self._kept)

    def add(self, line: bytes) -> None:
        """Append a line, now or when there is room; never ``OSError``."""
        with self._lock:
            if self._kept_bytes + len(line) > MOST_KEPT:
                self._lost += 1
            else:
                self._kept.append(line)
                self._kept_bytes += len(line)
            self.flush()

    def flush(self) -> bool:
        """Write what is kept; whether nothing is kept any more."""
        with self._lock:
            try:
                while self._kept:
                    self._write(self._kept[0])
                    self._kept_bytes -= len(self._kept.popleft())
            except OSError as error:
                self.failed(error)
                return False
            if self._failing:
                self._failing = False
                lost = f", {self._lost} lines were lost" if self._lost else ""
                self._lost = 0
                log.warning("%s: can be written again and has what was kept%s", self._path, lost)
            return True

    def failed(self, error: OSError) -> None:
        """Say, once until the file can be written again, that it cannot."""
        if not self._failing:
            self._failing = True  # first: the line below may come back here, by way of the log file
            log.warning("%s; the work goes on, what belongs there is kept in memory", _reason(self._path, error))

    def close(self) -> None:
        """A last attempt; what is lost is said."""
        with self._lock:
            if not self.flush():
                count, self._lost = len(self._kept) + self._lost, 0
                self._kept.clear()
                log.warning("%s: still cannot be written; its last %d lines are lost", self._path, count)


class PatientLogFile(logging.Handler):
    """A log file that never stops the program: as ``logging.FileHandler``, but lines wait in memory for room."""

    def __init__(self, path: Path) -> None:
        with naming(path, path):
            self._file = path.open("ab", buffering=0)
        super().__init__()  # registers it, so last: at the end of the process all registered handlers are closed
        self._lines = PatientLines(path, self._append)

    def emit(self, record: logging.LogRecord) -> None:
        """Append a record; after ``close``, as `logging.shutdown` does it at the end, nothing."""
        if not self._file.closed:
            self._lines.add((self.format(record) + "\n").encode("utf-8", "replace"))

    def close(self) -> None:
        """Write what is kept, if that goes."""
        if not self._file.closed:
            self._lines.flush()
            self._file.close()
        super().close()

    def _append(self, line: bytes) -> None:
        append_whole(self._file.fileno(), line)


def append_whole(fd: int, line: bytes) -> None:
    """Append to an open file (``O_APPEND``) all of a line or nothing."""
    start = os.fstat(fd).st_size
    try:
        if os.write(fd, line) == len(line):
            return
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        with suppress(OSError):
            os.ftruncate(fd, start)
        raise


def _reason(path: Path, error: OSError) -> str:
    return str(error) if isinstance(error, CannotWriteError) else why_not_written(path, error)


def attempt(path: Path, work: Callable[[], T]) -> T | None:
    """``work()``, which writes ``path``; none if the file system refuses, which is said once for each folder."""
    try:
        done = work()
    except OSError as error:
        if str(path.parent) not in _said:
            _said.add(str(path.parent))
            log.warning("%s; the work goes on without it", _reason(path, error))
        return None
    _said.discard(str(path.parent))
    return done
