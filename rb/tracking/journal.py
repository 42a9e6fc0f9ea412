"""The journal of a run: an append-only JSONL file that every event goes to first. MLflow and the report only read it.

One row a line, written whole by one system call under a lock, so that threads and processes (an evaluation job beside the training) may
append to the same file and a kill leaves at most one torn line, at the end. Rows:

    {"kind": "metrics", "time": s, "step": n, "values": {name: float}}      NaN and infinities as "NaN", "Infinity", "-Infinity"
    {"kind": "params" | "tags", "time": s, "values": {name: str}}
    {"kind": "input", "time": s, "name": str, "digest": str, "source": str, "context": "training" | "validation"}
    {"kind": "model", "time": s, "name": str, "step": n, "checkpoint": str}  metrics below are of this checkpoint of the training ``name``
    {"kind": "artifact", "time": s, "path": str}                            relative to the run folder where it lies in it
    {"kind": "status", "time": s, "status": "RUNNING" | "FINISHED" | "FAILED" | "KILLED"}
    {"kind": "resume", "time": s, "step": n}                                metrics above step n, written before this row, are superseded
    {"kind": "bad_step", "time": s, "step": n, "modality": str, "ranks": [a rank, ...]}     a step that was skipped; ``bad_steps.py`` reads it
        a rank: {"terms": [str], "losses": {str: float}, "ids": [str], "positions": [int]}  terms: those whose loss is not finite

``time`` is in seconds since 1970. Nothing here knows MLflow.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rb.core.files import cannot_write, naming, sync
from rb.core.locks import locked
from rb.core.patient import PatientLines, append_whole
from rb.core.strict_json import parse

STATUSES = ("RUNNING", "FINISHED", "FAILED", "KILLED")
_LAST_TIME = 253402300800.0  # the year 10000, which no calendar of Python's has
_TEXTS = {
    "input": ("name", "digest", "source"),
    "model": ("name", "checkpoint"),
    "artifact": ("path",),
    "status": ("status",),
    "bad_step": ("modality",),
}
KINDS = ("metrics", "params", "tags", "input", "model", "artifact", "status", "resume", "bad_step")

_LONGEST_ROW = 1 << 20  # bytes that surely hold the last row

_log = logging.getLogger(__name__)


class Point(NamedTuple):
    """One value of one metric."""

    step: int
    time: float
    value: float


class Journal:
    """Writes rows to ``path`` (made with its folder where missing). Thread-safe; several processes may write one file.

    ``CannotWriteError`` where the file cannot be opened for writing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        with naming(self.path, self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new = not self.path.exists()
            self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        if new:
            sync(self.path.parent)  # or the file may be gone after a power failure, whatever was synced of its rows

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append the values of one step."""
        self.write("metrics", step=int(step), values=encoded(values))

    def truncate_after(self, step: int) -> None:
        """Mark that the run continues from ``step``: rows of later steps will be written again."""
        self.write("resume", step=int(step))

    def write(self, kind: str, **fields: object) -> None:
        """Append one row of any kind; ``time`` among its fields replaces the present.

        ``OSError`` where the disk refuses; the file then holds nothing of the row.
        """
        assert kind in KINDS, kind
        row = {"kind": kind, "time": time.time(), **fields}
        self._append(
            (json.dumps(row, ensure_ascii=False, allow_nan=False, default=str) + "\n").encode("utf-8", "replace")
        )

    def sync(self) -> None:
        """Wait until all rows are on the disk. Meanwhile other threads write rows."""
        with self._lock:
            handle = os.dup(self._fd)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def _append(self, line: bytes) -> None:
        """Append a line as it is; ``CannotWriteError`` where the disk refuses."""
        with self._lock, locked(self._fd, self.path):
            try:
                self._drop_torn_tail()
                append_whole(self._fd, line)
            except OSError as error:
                raise cannot_write(self.path, error) from error

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _drop_torn_tail(self) -> None:
        """Cut what a killed writer left behind the last line end, or the next row would be glued to it."""
        size = os.fstat(self._fd).st_size
        if size == 0 or os.pread(self._fd, 1, size - 1) == b"\n":
            return
        keep, block = size, 65536
        while keep > 0:
            start = max(0, keep - block)
            found = os.pread(self._fd, keep - start, start).rfind(b"\n")
            if found >= 0:
                keep = start + found + 1
                break
            keep = start
        os.ftruncate(self._fd, keep)


class PatientJournal(Journal):
    """The journal of a training: where its disk takes no more, rows wait in memory, and no call raises ``OSError``."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._waiting = PatientLines(self.path, super()._append)

    def sync(self) -> None:
        """Wait until all rows are on the disk, those that waited too, as far as there is room."""
        try:
            if self._waiting.flush():
                super().sync()
        except OSError as error:
            self._waiting.failed(error)

    def close(self) -> None:
        """Write what waits, or say how much is lost; close the file."""
        if self._fd >= 0:
            self._waiting.close()
        super().close()

    def _append(self, line: bytes) -> None:
        self._waiting.add(line)


def encoded(values: Mapping[str, float]) -> dict[str, float | str]:
    """Numbers as a row holds them: those that JSON does not know are texts."""
    return {name: _encode(float(value)) for name, value in values.items()}


def _encode(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def warn_bad_line(message: str) -> None:
    """What readers do by default with a line that is not a row: log it and read on."""
    _log.warning("%s", message)


def read_rows(
    path: str | Path, start: int = 0, on_bad: Callable[[str], None] = warn_bad_line
) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield (row, byte offset after it) from byte ``start`` on.

    A last line without its line end is still being written, or torn, and is left out. Any other line that is not a row is skipped and
    reported through ``on_bad`` (which may raise). A file that is not there has no rows.
    """
    try:
        file = Path(path).open("rb")  # noqa: SIM115 (closed by the with below; the try is for a missing file only)
    except FileNotFoundError:
        return
    with file:
        file.seek(start)
        offset = start
        for line in file:
            if not line.endswith(b"\n"):
                return
            begin, offset = offset, offset + len(line)
            try:
                row = _decode(line)
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
                on_bad(f"{path}: the line at byte {begin} is not a journal row and is skipped ({error!r})")
                continue
            yield row, offset


def last_row(path: str | Path) -> dict[str, Any] | None:
    """The last row of a journal, from the end of the file; none where there is none or its last whole line is not a row."""
    try:
        with Path(path).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LONGEST_ROW))
            lines = file.read().split(b"\n")
        return _decode(lines[-2])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _decode(line: bytes) -> dict[str, Any]:
    row: dict[str, Any] = parse(line, "row")
    kind = row["kind"]
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}")
    row["time"] = float(row["time"])
    if not 0 <= row["time"] < _LAST_TIME:
        raise ValueError(f"no time: {row['time']}")
    if kind in ("metrics", "resume", "bad_step", "model"):
        row["step"] = int(row["step"])
        if abs(row["step"]) >= 1 << 62:
            raise ValueError(f"no step: {row['step']}")
    if kind == "metrics":
        row["values"] = {str(name): float(value) for name, value in row["values"].items()}
    elif kind in ("params", "tags"):
        row["values"] = {str(name): str(value) for name, value in row["values"].items()}
    elif kind == "bad_step":
        row["ranks"] = [_decode_rank(rank) for rank in row["ranks"]]
    for name in _TEXTS.get(kind, ()):
        if not isinstance(row[name], str):
            raise TypeError(f"{name} must be a text")
    return row


def _decode_rank(rank: dict[str, Any]) -> dict[str, Any]:
    """What one rank had in a bad step; another form raises."""
    return {
        "terms": [str(term) for term in rank["terms"]],
        "losses": {str(name): float(value) for name, value in rank["losses"].items()},
        "ids": [str(one) for one in rank["ids"]],
        "positions": [int(position) for position in rank["positions"]],
    }


def metric_points(path: str | Path, on_bad: Callable[[str], None] = warn_bad_line) -> dict[str, list[Point]]:
    """Every metric as the run stands now, by step: of each (name, step) the last value, without what a resume superseded."""
    found: dict[str, dict[int, Point]] = {}
    for row, _ in read_rows(path, on_bad=on_bad):
        if row["kind"] == "metrics":
            for name, value in row["values"].items():
                found.setdefault(name, {})[row["step"]] = Point(row["step"], row["time"], value)
        elif row["kind"] == "resume":
            for points in found.values():
                for step in [s for s in points if s > row["step"]]:
                    del points[step]
    return {name: [points[step] for step in sorted(points)] for name, points in found.items() if points}


def merged_values(path: str | Path, kind: str) -> dict[str, str]:
    """All ``params`` or ``tags`` of a journal, the last value of each name."""
    merged: dict[str, str] = {}
    for row, _ in read_rows(path):
        if row["kind"] == kind:
            merged.update(row["values"])
    return merged
