"""A fault in a training rank, where RB_TRIAL_HANG asks for one: it never comes back from a beat. For trials of hangs, by PYTHONPATH.

RB_TRIAL_HANG="RANK PHASE N KIND FILE": at the N-th beat of this rank in this phase; where PHASE is "writing", at the N-th sign of progress of the
thread that writes a checkpoint beside the steps; where it is "backward", in the N-th backward pass, before its collectives. FILE is written first, with the host's monotonic time. KIND:

    stopped   SIGSTOP
    loop      an endless loop in Python
    library   a call into C that does not return in the lifetime of the universe and keeps the interpreter's lock: no other thread of the rank runs
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def hang(kind: str, file: Path) -> None:
    file.write_text(str(time.monotonic()))
    if kind == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if kind == "library":
        re.match(r"(a|a|a)+$", "a" * 99 + "b")
    while True:
        pass


def install(rank: str, phase: str, number: str, kind: str, file: str) -> None:
    from rb.core import heartbeat

    left = int(number)
    beat, written, waiting = heartbeat.beat, heartbeat.written, heartbeat.waiting

    def count(here: bool) -> None:
        nonlocal left
        left -= here
        if left == 0:
            hang(kind, Path(file))

    def beat_or_hang() -> None:
        beat()
        count(heartbeat.watched() and heartbeat.current_phase() == phase)

    def written_or_hang() -> None:
        written()
        count(phase == "writing")

    @contextmanager
    def waiting_or_hang(name: str, counted: bool = True) -> Iterator[None]:
        with waiting(name, counted):
            count(phase == name.partition(" ")[0])
            yield

    if os.environ["RANK"] == rank:
        heartbeat.beat, heartbeat.written, heartbeat.waiting = beat_or_hang, written_or_hang, waiting_or_hang


if "RB_HEARTBEAT" in os.environ and "RANK" in os.environ and (asked := os.environ.get("RB_TRIAL_HANG")):
    install(*asked.split())
