"""Signs of progress of a training rank, in a small shared file that the agent of its node reads: what it does, how far it is, where it waits.

A rank beats where it gets somewhere: a micro-batch, a batch of validation, a tensor of a checkpoint. It never beats from a thread beside the
work, so a rank that is stopped, loops for ever or waits for another one is silent. Writing one costs no system call. Where nobody watches (no
RB_HEARTBEAT in the environment) every function here does nothing. A checkpoint that a thread writes beside the steps has its own time in the file
(`writing`, `written`): the progress of the steps cannot hide that the write hangs, and the other way round.

On SIGUSR1 the rank's Python stacks go to a file beside it, also while Python waits in a library. The signal's number also goes to whoever reads
Python's wakeup pipe (`rb/core/stopping.py`), which may add what it knows (`add_to_stacks`).
"""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import signal
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rb.core.strict_json import parse

VARIABLE = "RB_HEARTBEAT"  # environment variable of a rank: path of its file, which its agent made
STACKS_SUFFIX = ".stacks"  # behind that path: where its stacks go
BEGUN = "collectives begun by group: "  # begins a line behind the stacks, with JSON: group -> number, by torch's record
START, TRAINING, VALIDATION, SAVING, END = PHASES = ("start", "training", "validation", "saving", "end")

SIZE = 64 * 1024
# Version of the content (odd while it is written), beats, time (CLOCK_MONOTONIC, the same for all processes of a host), step, phase, collectives
# begun, whether the newest has not ended, bytes of JSON that follow: {"in": name of the newest collective, "samples": [...]}; time of the newest
# progress of a checkpoint that is written, 0 where none is.
_HEAD = struct.Struct("<QQdqIQIId")
_MOST_SAMPLES = 256


@dataclass(frozen=True)
class Beat:
    """The newest sign of progress of a rank."""

    count: int
    """Beats so far."""
    time: float
    """When, by the host's monotonic clock, in seconds."""
    phase: str
    """One of PHASES."""
    step: int
    """Optimizer steps made; -1 before the first is begun."""
    collectives: int = 0
    """How many of the project's own collectives it has begun."""
    waits_in: str = ""
    """The collective that it is in: "all_gather"; empty where it is in none of ours."""
    samples: tuple[str, ...] = ()
    """Ids of the samples of the step that it is in (this rank's, 256 at most)."""
    written: float = 0.0
    """When the checkpoint that it writes beside the steps made progress, by the same clock; 0 where it writes none."""


class _Writer:
    def __init__(self, path: str) -> None:
        with open(path, "r+b") as file:  # noqa: PTH123 (kept simple: before anything else is imported)
            self._map = mmap.mmap(file.fileno(), SIZE)
        self.version = self.count = self.collectives = 0
        self.step, self.phase, self.inside = -1, 0, ""
        self.detail = b"{}"
        self.when = self.written = 0.0
        self._lock = (
            threading.Lock()
        )  # the thread that writes a checkpoint writes here too; free, it costs no system call
        self.samples = b"[]"  # JSON
        self._stacks = open(path + STACKS_SUFFIX, "wb", buffering=0)  # noqa: PTH123, SIM115 (open as long as the process lives)
        # Behind faulthandler's own handler comes Python's, which writes the number into the wakeup pipe.
        signal.signal(signal.SIGUSR1, _do_nothing)
        faulthandler.register(signal.SIGUSR1, file=self._stacks, all_threads=True, chain=True)

    def add(self, text: str) -> None:
        self._stacks.write(text.encode())

    def write(self, detail: bytes | None = None) -> None:
        with self._lock:
            self.when = time.monotonic()
            self._write(detail)

    def write_written(self, when: float) -> None:
        with self._lock:
            self.written = when
            self._write(None)

    def _write(self, detail: bytes | None) -> None:
        self.version += 1
        self._head()
        if detail is not None:
            self.detail = detail
            self._map[_HEAD.size : _HEAD.size + len(detail)] = detail
        self.version += 1
        self._head()

    def _head(self) -> None:
        values = (self.version, self.count, self.when, self.step, self.phase, self.collectives)
        _HEAD.pack_into(self._map, 0, *values, int(bool(self.inside)), len(self.detail), self.written)


_writer: _Writer | None = None


def begin() -> None:
    """Open the file that the environment names, if it names one. First thing in a rank, before torch is imported."""
    global _writer
    path = os.environ.get(VARIABLE, "")
    if path and _writer is None:
        _writer = _Writer(path)
        _writer.count += 1
        _writer.write(_writer.detail)


def watched() -> bool:
    """Whether somebody reads this rank's beats."""
    return _writer is not None


def silent_s() -> float:
    """Seconds since this rank's last beat; 0 where nobody watches."""
    return time.monotonic() - _writer.when if _writer is not None else 0.0


def add_to_stacks(text: str) -> None:
    """Write behind the stacks that were asked for."""
    if _writer is not None:
        _writer.add(text)


def beat() -> None:
    """Progress."""
    if _writer is not None:
        _writer.count += 1
        _writer.write()


def phase(name: str) -> None:
    """Progress: another phase begins."""
    if _writer is not None:
        _writer.phase = PHASES.index(name)
        beat()


def current_phase() -> str:
    """The phase that this rank is in, to go back to."""
    return PHASES[_writer.phase] if _writer is not None else START


@contextmanager
def during(name: str) -> Iterator[None]:
    """A phase, and the one before it again afterwards."""
    before = current_phase()
    phase(name)
    try:
        yield
    finally:
        phase(before)


def step(number: int) -> None:
    """Progress: so many optimizer steps are made; the next one begins."""
    if _writer is not None:
        _writer.step = number
        beat()


def samples(ids: Sequence[str]) -> None:
    """Progress: the samples of the step are here."""
    if _writer is not None:
        _writer.samples = _fitting(ids[:_MOST_SAMPLES])
        _writer.count += 1
        _writer.write(_detail())


@contextmanager
def waiting(name: str, counted: bool = True) -> Iterator[None]:
    """A collective, or work that holds some: progress when it begins and when it has ended. May be nested.

    Args:
        name: of it, for people.
        counted: whether all ranks make it. Those of some ranks only are named, but a rank that makes fewer of them is not behind.
    """
    if _writer is None:
        yield
        return
    _writer.collectives += counted
    _writer.count += 1
    around, _writer.inside = _writer.inside, name
    _writer.write(_detail())
    yield  # a collective that fails ends the rank: it stays named
    _writer.inside = around
    _writer.count += 1
    _writer.write(_detail() if around else None)


@contextmanager
def writing() -> Iterator[None]:
    """A thread writes a checkpoint beside the steps: its progress is watched by itself until this ends."""
    if _writer is None:
        yield
        return
    _writer.write_written(time.monotonic())
    try:
        yield
    finally:
        _writer.write_written(0.0)


def written() -> None:
    """Progress of the checkpoint that is being written. In the thread that is in `writing`; elsewhere it does nothing."""
    if _writer is not None and _writer.written:
        _writer.write_written(time.monotonic())


def _detail() -> bytes:
    assert _writer is not None
    return b'{"in": %s, "samples": %s}' % (json.dumps(_writer.inside).encode(), _writer.samples)


def _fitting(ids: Sequence[str]) -> bytes:
    """JSON of as many ids as have room."""
    while len(text := json.dumps(ids).encode()) > SIZE - _HEAD.size - 1024:
        ids = ids[: len(ids) // 2]
    return text


def _do_nothing(*_: object) -> None:
    """Python's handler: only its number in the wakeup pipe matters."""


def make(path: Path) -> None:
    """An empty file for a rank, made by its agent before the rank starts."""
    with path.open("xb") as file:
        file.truncate(SIZE)
    path.chmod(0o600)


def read(path: Path) -> Beat | None:
    """The newest beat in a rank's file; none before the first, or while one is being written (ask again)."""
    content = path.read_bytes()
    if len(content) != SIZE:
        return None
    version, count, when, number, place, collectives, inside, length, written = _HEAD.unpack_from(content)
    if version == 0 or version % 2 or length > SIZE - _HEAD.size or place >= len(PHASES):
        return None
    try:
        detail = parse(content[_HEAD.size : _HEAD.size + length], str(path))
        waits_in, ids = str(detail.get("in", "")) if inside else "", tuple(map(str, detail.get("samples", ())))
    except (ValueError, AttributeError, TypeError):
        return None
    return Beat(count, when, PHASES[place], number, collectives, waits_in, ids, written)
