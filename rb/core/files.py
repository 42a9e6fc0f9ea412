"""Files and folders written whole or not at all, and their digests. Every room writes through this file.

A reader sees the old content or the new one, never a part: what is written gets a temporary name in the same folder, goes to the disk
(fsync) and is renamed. Modes follow the umask, also of files that a library makes for their owner alone. Where the file system refuses, the error
names the path that was meant, the reason and the bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_PIECE = 1 << 20
# The file system cannot take more, whatever was asked for.
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES)


class CannotWriteError(OSError):
    """A file or folder that cannot be written; what was there before is intact."""

    def __str__(self) -> str:
        return str(self.args[1])


def cannot_write(path: Path, error: Exception, needed: int | None = None) -> CannotWriteError:
    """The error to raise where ``path`` cannot be written, with reason and bytes; ``needed``: its size, if known."""
    number = _number(error)
    return CannotWriteError(number, why_not_written(path, error, needed))


def why_not_written(path: Path, error: Exception, needed: int | None = None) -> str:
    """``PATH: cannot be written (No space left on device; 1,024 bytes needed, 0 free)``."""
    number = _number(error)
    reason = os.strerror(number) if number else str(error)
    parts = [] if needed is None else [f"{needed:,} bytes needed"]
    free = _free(path)
    if free is not None:
        parts.append(f"{free:,} free" if parts else f"{free:,} bytes free")
    return f"{path}: cannot be written ({'; '.join(filter(None, [reason, ', '.join(parts)]))})"


def check_room(path: Path, needed: int) -> None:
    """``CannotWriteError`` if the file system that ``path`` will be on has fewer bytes free than are needed."""
    free = _free(path)
    if free is not None and free < needed:
        raise cannot_write(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), needed)


def _free(path: Path) -> int | None:
    """Bytes free where ``path`` is or will be; none where the file system does not say."""
    try:
        usage = shutil.disk_usage(next(parent for parent in (path, *path.absolute().parents) if parent.is_dir()))
    except OSError:
        return None
    return usage.free if usage.total else None


def _number(error: Exception) -> int:
    """The errno of an error; of a library written in Rust from its text."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return getattr(error, "errno", None) or (int(found[1]) if found else 0)


def check_writable(path: Path) -> None:
    """Raise now, before hours of work, what writing ``path`` would raise later; its folder is made."""
    probe = temporary_name(path)
    with naming(path, probe):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _new_file(probe)
            probe.write_bytes(bytes(4096))
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)


@contextmanager
def naming(path: Path, temporary: Path) -> Iterator[None]:
    """Errors of writing ``temporary``, and of a file system that takes no more, name ``path``; others pass."""
    try:
        yield
    except Exception as error:
        ours = str(getattr(error, "filename", None) or "").startswith(str(temporary))
        if _number(error) in REFUSED or ours:
            raise cannot_write(path, error) from error
        raise


def temporary_name(path: Path) -> Path:
    """A name beside ``path`` that no other process or thread uses: ``.NAME.PROCESS-RANDOM.tmp``."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def is_temporary(name: str, of: str | None = None) -> bool:
    """Whether a name is one of ``temporary_name``, for a file called ``of`` or for any."""
    stem = r".+" if of is None else re.escape(of)
    return re.fullmatch(rf"\.{stem}\.\d+-[0-9a-f]{{8}}\.tmp", name, re.DOTALL) is not None


def left_overs(path: Path) -> list[Path]:
    """What is left of ``path`` where its writer was killed, and what one writes just now."""
    return sorted(other for other in path.parent.iterdir() if is_temporary(other.name, path.name))


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Gives the name to write to; when the block ends without an error, its content is at ``path`` and on the disk."""
    path = Path(path)
    temporary = temporary_name(path)
    try:
        with naming(path, temporary):
            mode = _new_file(temporary)
            yield temporary
            temporary.chmod(mode)
            sync(temporary)
            temporary.replace(path)
    finally:
        with suppress(OSError):  # of a read-only file system even where there is nothing to remove
            temporary.unlink(missing_ok=True)
    sync(path.parent)


def slug(name: str) -> str:
    """A name as a part of a file's or a folder's name: small letters, digits, dots and underscores."""
    return re.sub(r"[^a-z0-9._]+", "_", name.lower()).strip("_.")


def write_whole(path: str | Path, content: str | bytes) -> None:
    """``content`` (text as UTF-8) at ``path`` in one step."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: str | Path, tree: Mapping[str, Any] | list[Any]) -> None:
    """Indented JSON in one step; ``ValueError`` for a number that JSON cannot hold."""
    write_whole(path, json.dumps(tree, indent=1, allow_nan=False) + "\n")


@contextmanager
def whole_folder(path: str | Path, replace: bool = False) -> Iterator[Path]:
    """Gives a new folder to fill; when the block ends without an error, it is at ``path`` and all of it on the disk.

    Args:
        replace: take the place of a folder that is there.

    Raises:
        FileExistsError: ``path`` exists and is not to be replaced.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        with naming(path, temporary):
            temporary.mkdir()
            yield temporary
        publish_folder(temporary, path, replace)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish_folder(temporary: Path, path: Path, replace: bool = False) -> None:
    """Put the filled folder ``temporary`` at ``path`` beside it, after all of it is on the disk.

    Raises:
        FileExistsError: ``path`` exists and is not to be replaced.
    """
    with naming(path, temporary):
        _settle(temporary)
    old = temporary_name(path)
    if path.exists():
        if not replace:
            raise FileExistsError(errno.EEXIST, "exists already", str(path))
        path.rename(old)
    temporary.rename(path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync(path: str | Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some file systems cannot do it for folders
        if error.errno not in _NO_FOLDER_SYNC or not Path(path).is_dir():
            raise
    finally:
        os.close(handle)


def sha256(content: str | bytes | memoryview) -> str:
    """sha256 of bytes, or of a text as UTF-8, in hexadecimal."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def digest64(data: bytes) -> int:
    """A 64-bit digest (BLAKE2b) as a whole number: of a record's byte range in the index, and of ids in sets that are held in memory."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def file_sha256(path: str | Path, progress: Callable[[int], object] = lambda _: None) -> str:
    """sha256 of a whole file, read in pieces; ``progress`` is called with the bytes of each."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            progress(len(piece))
    return digest.hexdigest()


def _new_file(path: Path) -> int:
    """Make an empty file, and return the mode that the umask gave it (reading the umask itself would change it for all threads)."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)


def _settle(folder: Path) -> None:
    """Modes by the umask, and everything on the disk, from the leaves up."""
    probe = temporary_name(folder / "mode")
    mode = _new_file(probe)
    probe.unlink()
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            file = Path(root) / name
            with suppress(PermissionError):
                file.chmod(mode)
            sync(file)
        sync(root)
