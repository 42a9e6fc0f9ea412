"""The guard of a node's ranks: ends those that are left when their supervisor was killed. `python -m rb.launching.guard FOLDER [STOPPED_S]`.

Ranks notice the end of their supervisor and leave by themselves, but not a rank that is stopped, or that waits for another one for ever. The guard
reads the ranks' process numbers from its supervisor, line by line; the end of that pipe without the word "done" is the supervisor's death. Then it
waits until no rank has made progress for a while, and kills what is left.

A supervisor that is stopped (SIGSTOP) for STOPPED_S seconds counts as dead too, and is killed at the end: an agent that its controller has given up.
Without STOPPED_S it may be stopped for ever, as by Ctrl-Z in a terminal.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import time
from pathlib import Path

import psutil

from rb.core import heartbeat
from rb.core.stopping import lives
from rb.launching.node import end_session
from rb.launching.patience import ALONE_S, Patience

NO_PROGRESS_S = 30.0  # ranks that save make progress; those that hang make none
_POLL_S = 0.5
_STALL_S = 5.0  # between two looks: this process was stopped too, with all others of its job
DONE, KILLED, STOPPED = range(3)
Ranks = list[tuple[psutil.Process, Path]]


class Stops:
    """How long a process has been stopped; what it is when this process itself stood still does not count."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._since = self._looked = time.monotonic()

    def seconds(self) -> float:
        """Seconds since it was seen to run, by looks that are at most a few seconds apart."""
        now = time.monotonic()
        if not is_stopped(self._process) or now - self._looked > _STALL_S:
            self._since = now
        self._looked = now
        return now - self._since


def main(folder: Path, stopped_s: float) -> int:
    """Wait for the supervisor's word or its death, end what is left; returns the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with its supervisor, not before
    supervisor, ranks = psutil.Process(os.getppid()), Ranks()
    end = listen(supervisor, stopped_s, ranks, folder)
    if end == DONE:
        return 0
    if end == STOPPED:
        for process, _ in ranks:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGTERM)
    patience = Patience(NO_PROGRESS_S if end == KILLED else ALONE_S)
    while (running := [path for process, path in ranks if lives(process)]) and not patience.over(_beats(running)):
        time.sleep(_POLL_S)
    for process, _ in ranks:
        if lives(process):
            end_session(process.pid)
    if end == STOPPED and is_stopped(supervisor):
        supervisor.kill()
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def listen(supervisor: psutil.Process, stopped_s: float, ranks: Ranks, folder: Path) -> int:
    """Note the ranks that the supervisor names; how it has ended: DONE, KILLED or STOPPED."""
    stops, pipe, text = Stops(supervisor), sys.stdin.fileno(), b""
    while True:
        ready, _, _ = select.select([pipe], [], [], _POLL_S if stopped_s else None)
        if ready:
            piece = os.read(pipe, 65536)
            *lines, text = (text + piece).split(b"\n")
            for line in lines:
                if line == b"done":
                    return DONE
                pid, name = line.decode().split(maxsplit=1)
                with contextlib.suppress(psutil.NoSuchProcess):
                    ranks.append((psutil.Process(int(pid)), folder / name))
            if not piece:
                return KILLED
        if stopped_s and stops.seconds() > stopped_s:
            return STOPPED


def is_stopped(process: psutil.Process) -> bool:
    """Whether a process is there and stopped."""
    try:
        return bool(process.status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def _beats(paths: list[Path]) -> list[heartbeat.Beat | None]:
    """The newest beat of every rank."""
    beats: list[heartbeat.Beat | None] = []
    for path in paths:
        try:
            beats.append(heartbeat.read(path))
        except OSError:
            beats.append(None)
    return beats


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.0))
