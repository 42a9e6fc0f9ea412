"""The guard of a node's ranks: ends those that are left when their supervisor was killed. `python -m rb.launching.guard FOLDER`.

Ranks notice the end of their supervisor and leave by themselves, but not a rank that is stopped, or that waits for another one for ever. The guard
reads the ranks' process numbers from its supervisor, line by line; the end of that pipe without the word "done" is the supervisor's death. Then it
waits until no rank has made progress for a while, and kills what is left.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import time
from pathlib import Path

import psutil

from rb.core import heartbeat
from rb.core.stopping import lives
from rb.launching.node import end_session
from rb.launching.patience import Patience

NO_PROGRESS_S = 30.0  # ranks that save make progress; those that hang make none
_POLL_S = 0.5


def main(folder: Path) -> int:
    """Wait for the supervisor's word or its death; returns the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with its supervisor, not before
    ranks: list[tuple[psutil.Process, Path]] = []
    for line in sys.stdin:
        if line == "done\n":
            return 0
        pid, name = line.split(maxsplit=1)
        with contextlib.suppress(psutil.NoSuchProcess):
            ranks.append((psutil.Process(int(pid)), folder / name.strip()))
    patience = Patience(NO_PROGRESS_S)
    while (running := [path for process, path in ranks if lives(process)]) and not patience.over(_beats(running)):
        time.sleep(_POLL_S)
    for process, _ in ranks:
        if lives(process):
            end_session(process.pid)
    shutil.rmtree(folder, ignore_errors=True)
    return 0


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
    sys.exit(main(Path(sys.argv[1])))
