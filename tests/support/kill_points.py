"""A checkpoint's writing that is killed in front of its n-th system call: strace, attached to the writing thread, sends SIGKILL there.

The process under test waits in front of the writing (`wait_for_strace`, in its thread of rank 0) until strace is attached, so that calls are counted from there on.
Needs Debian's package strace and the right to trace a process of one's own; a test is skipped where either is missing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rb.training.saving import Saver
from tests.support.processes import Started

# Calls that change something on a disk, or may; "?": not every processor's Linux has it.
CALLS = (
    *("write", "?writev", "?pwrite64", "?pwritev", "?copy_file_range", "?sendfile", "?fallocate", "?openat", "?open"),
    *("?creat", "fsync", "?fdatasync", "?rename", "?renameat", "?renameat2", "?unlink", "?unlinkat", "?mkdir"),
    *("?mkdirat", "?rmdir", "?truncate", "?ftruncate", "?link", "?linkat", "?chmod", "?fchmod", "?fchmodat"),
)
TID, GO = "tid", "go"
LIMIT_S = 120


@dataclass(frozen=True)
class Point:
    """One system call of a writing."""

    call: str
    """``rename``."""
    number: int
    """Which of that name it is in the thread, from 1."""
    text: str
    """Call and arguments as strace shows them, with paths in the place of file descriptors."""


def wait_for_strace(gate: Path, number: int) -> None:
    """In the process under test: its ``number``-th writing of a checkpoint waits in front of everything until strace is attached."""
    write, calls = Saver._write, [0]

    def gated(*arguments: Any) -> None:
        calls[0] += 1
        if calls[0] == number:
            (gate / "new").write_text(str(threading.get_native_id()))
            (gate / "new").rename(gate / TID)
            while not os.path.exists(gate / GO):  # noqa: PTH110 (a call that is not traced, and nothing else)
                time.sleep(0.002)
        write(*arguments)

    Saver._write = gated  # type: ignore[method-assign,assignment]


def _not_here(reason: str) -> None:
    """Skip the test; fail it where RB_NEED_HOSTS says that everything must be there."""
    (pytest.fail if os.environ.get("RB_NEED_HOSTS") else pytest.skip)(reason)


def run_traced(start: Callable[[], Started], gate: Path, kill_at: Point | None = None) -> str:
    """Run a process that calls `wait_for_strace` to its end; what strace saw of its writing thread.

    Args:
        start: starts the process.
        gate: the folder that the process has too; made here.
        kill_at: the call in front of which it is killed.
    """
    if shutil.which("strace") is None:
        _not_here("needs strace (Debian's package strace)")
    gate.mkdir()
    process = start()
    end = time.monotonic() + LIMIT_S
    while not (gate / TID).exists():
        assert process.poll() is None, process.output()
        assert time.monotonic() < end, process.output()
        time.sleep(0.005)
    calls, log = ",".join(CALLS), gate / "strace"
    command = ["strace", "-y", "-s", "0", "-o", str(log), "-p", (gate / TID).read_text(), "-e", f"trace={calls}"]
    if kill_at:
        command += ["-e", f"inject={kill_at.call}:signal=KILL:when={kill_at.number}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        said = strace.stderr.readline()
        if "attached" not in said:
            process.send(9)  # type: ignore[arg-type]
            _not_here(f"cannot trace a process of one's own here: {said.strip()}")
        (gate / GO).touch()
        code = process.wait(LIMIT_S)
        assert code == (-9 if kill_at else 0), f"exit code {code}\n{process.output()}"
        if not kill_at:
            strace.terminate()  # the thread of a process that has ended well is gone; nothing else keeps strace
    return log.read_text()


def points_of(trace: str, folder: Path) -> list[Point]:
    """The calls that change something below a folder, in their order."""
    counts, found = Counter[str](), list[Point]()
    for line in trace.splitlines():
        if named := re.match(r"(\w+)\(", line):
            counts[named[1]] += 1
            found.append(Point(named[1], counts[named[1]], line))
    return [point for point in found if str(folder) in point.text and not _only_reads(point)]


def _only_reads(point: Point) -> bool:
    return point.call in ("open", "openat") and not re.search("O_WRONLY|O_RDWR|O_CREAT|O_TRUNC", point.text)
