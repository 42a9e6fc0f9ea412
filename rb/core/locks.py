"""Locks between processes, on files: held while the holder lives, however it ends, and never by its loader workers.

``flock`` of an open file. A forked child (a loader worker) inherits the open file, so it closes its copy as its first act; a command
that is started does not get it. Where a file system has no locks, one warning says so and work continues. Every lock of the project is here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)

log = logging.getLogger(__name__)
_without_locks: set[int] = set()  # devices of which it was said
_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


class FileLock:
    """A lock whose file is ``path`` (made with its folder if missing); released by ``release``, or when the object or process ends."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.certain = True
        """False if the file system has no locks: then ``acquire`` succeeds but proves nothing about other processes."""
        self._fd = -1

    def acquire(self, wait: bool = False) -> bool:
        """Take the lock; without ``wait``, false if another process or object holds it."""
        if self._fd >= 0:
            return True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self.certain = _flock(fd, wait, self.path)
        except OSError as error:
            os.close(fd)
            if error.errno in _TAKEN:
                return False
            raise
        self._fd = fd
        with contextlib.suppress(OSError):  # a full disk: the lock is held all the same
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{_this_process()}\n".encode(), 0)
        _held.add(self)
        return True

    def owner(self) -> str:
        """Who took the lock last: "process 17 on HOST"; empty if no process did."""
        with contextlib.suppress(OSError):
            return self.path.read_text(encoding="utf-8", errors="replace")[:200].strip()
        return ""

    def in_place(self) -> bool:
        """Whether the file is still there as this process left it: its folder was neither removed, moved nor made again."""
        return self._fd >= 0 and self.owner() == _this_process()

    def release(self) -> None:
        """Let go; fine if not held."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> FileLock:
        """Wait for the lock."""
        self.acquire(wait=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()


@contextlib.contextmanager
def locked(fd: int, path: Path) -> Iterator[None]:
    """Hold an open file against other processes while in the block; ``path`` is its name. Without effect if the file system has no locks."""
    certain = _flock(fd, True, path)
    try:
        yield
    finally:
        if certain:
            fcntl.flock(fd, fcntl.LOCK_UN)


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _flock(fd: int, wait: bool, path: Path) -> bool:
    """Lock an open file; false if its file system cannot, which is said once for each file system."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        device = os.fstat(fd).st_dev
        if device not in _without_locks:
            _without_locks.add(device)
            log.warning(
                "%s: this file system has no locks (%s): what two processes write there at once is not kept apart; "
                "let one command at a time work there",
                *(path.parent, errno.errorcode.get(error.errno or 0, error.errno)),
            )
        return False
    return True


def _let_go_in_child() -> None:
    """A forked worker must not hold the lock of a parent that dies: close its copy; the parent's lock stays."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_let_go_in_child)
