"""What lies in a run's folder of checkpoints, each of them verified: the rows of `rb checkpoints`.

A training may write there meanwhile: a checkpoint that it deletes while it is read is left out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from rb.checkpoints.checkpoint import META_FILE, CheckpointError, left_overs, pointed, step_folders, step_of, verify
from rb.core import progress
from rb.core.run_layout import BEST, CHECKPOINTS, LATEST


@dataclass(frozen=True)
class Row:
    """One folder with the name of a checkpoint."""

    name: str
    step: int
    saved: str | None
    """Local time of its `checkpoint.json`; none where that is missing."""
    bytes: int
    latest: bool
    best: bool
    fault: str | None
    """What is wrong with it; none: it is whole."""


@dataclass(frozen=True)
class Listing:
    """The checkpoints of a run.

    Attributes:
        rows: the newest first.
        latest: the name in the file `latest`; none where there is no such file, or it names nothing that can be a checkpoint.
        best: the same of `best`.
        faults: what is wrong beside single checkpoints: of the two files.
        left_overs: hidden files and folders of a write that was killed, or that goes on just now. The next one removes them.
    """

    rows: list[Row]
    latest: str | None
    best: str | None
    faults: list[str]
    left_overs: list[str]

    @property
    def good(self) -> bool:
        """Whether `latest` names a whole one."""
        return any(row.latest and row.fault is None for row in self.rows)


def list_checkpoints(run_dir: Path) -> Listing:
    """Look at all checkpoints of a run, and read them from the first byte to the last.

    Raises:
        CheckpointError: there is no such run folder.
    """
    if not run_dir.is_dir():
        raise CheckpointError(f"{run_dir}: no such run folder")
    folder, faults = run_dir / CHECKPOINTS, list[str]()
    named = {file: _named(folder / file, faults) for file in (LATEST, BEST)}
    folders = step_folders(folder)
    rows = [
        row
        for path in progress.bar(folders, desc="verified", unit="checkpoint")
        if (row := _row(path, named[LATEST], named[BEST])) is not None
    ]
    names = {row.name for row in rows}
    faults += [
        f"{folder / file}: names {name}, which is missing" for file, name in named.items() if name and name not in names
    ]
    if rows and named[LATEST] is None and not any(fault.startswith(str(folder / LATEST)) for fault in faults):
        faults.append(f"{folder / LATEST}: missing")
    return Listing(rows, named[LATEST], named[BEST], faults, [path.name for path in left_overs(folder)])


def _named(pointer: Path, faults: list[str]) -> str | None:
    try:
        return pointed(pointer)
    except FileNotFoundError:
        return None
    except CheckpointError as error:
        faults.append(str(error))
    except OSError as error:
        faults.append(f"{pointer}: cannot be read ({error.strerror})")
    return None


def _row(path: Path, latest: str | None, best: str | None) -> Row | None:
    fault = None
    try:
        verify(path)
    except CheckpointError as error:
        fault = str(error).removeprefix(f"{path}/")
    except OSError as error:
        fault = f"cannot be read ({error.strerror})"
    try:
        size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
        meta = path / META_FILE
        saved = time.strftime("%FT%T%z", time.localtime(meta.stat().st_mtime)) if meta.is_file() else None
    except OSError as error:
        if not path.exists():
            return None
        size, saved, fault = 0, None, fault or f"cannot be read ({error.strerror})"
    return Row(path.name, step_of(path), saved, size, path.name == latest, path.name == best, fault)
