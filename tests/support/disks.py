"""A small file system that can be filled: a tmpfs of a given size, for tests of full disks. Needs the right to mount (root)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """A mounted tmpfs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def free(self) -> int:
        """Bytes free."""
        state = os.statvfs(self.path)
        return state.f_bavail * state.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Take all room but ``leave`` bytes (whole pages)."""
        with (self.path / "filler").open("ab", buffering=0) as file:
            file.write(bytes(max(0, self.free() - leave)))

    def empty(self) -> None:
        """Give the room back."""
        (self.path / "filler").unlink()

    def read_only(self, on: bool) -> None:
        """Let it be read only, or written again; no file on it may be open for writing."""
        subprocess.run(["mount", "-o", f"remount,{'ro' if on else 'rw'}", self.path], check=True)

    def resize(self, size: str) -> None:
        """Change how large it is, e.g. "64m"; "0" is no limit."""
        subprocess.run(["mount", "-o", f"remount,size={size}", self.path], check=True)


@contextmanager
def small_disk(path: Path, size: str = "1m") -> Iterator[SmallDisk]:
    """A disk at ``path``, which is made; the test is skipped where nothing can be mounted."""
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


@contextmanager
def mounted_at(source: Path, target: Path) -> Iterator[None]:
    """A file of a small disk under another path, where an empty file is made for it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.touch()
    source.touch()
    subprocess.run(["mount", "--bind", source, target], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", target], check=True)
