"""One tracker per run folder: a lock file that its process holds while it lives, and that tells others whether it still does."""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from pathlib import Path

LOCK_NAME = "tracking.lock"

_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


class FolderLock:
    """A lock on ``run_dir`` by ``flock``, released by ``release`` or by the end of the process, however it ends."""

    def __init__(self, run_dir: str | Path) -> None:
        self._path = Path(run_dir) / LOCK_NAME
        self._fd = -1
        self.certain = True
        """False where the file system has no locks: then ``acquire`` succeeds but proves nothing about other processes."""

    def acquire(self) -> bool:
        """Take the lock without waiting; false while another process (or object) holds it."""
        if self._fd >= 0:
            return True
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(fd)
                return False
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                os.close(fd)
                raise
            self.certain = False
        self._fd = fd
        _held.add(self)
        return True

    def release(self) -> None:
        """Let go; fine if not held."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _let_go_in_child() -> None:
    """A forked data loader worker must not hold the lock of a trainer that dies: close its copy (the trainer's lock stays)."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_let_go_in_child)
