"""A fault in a training rank, where RB_TRIAL_HANG asks for one: it never comes back from a beat. For trials of hangs, by PYTHONPATH.

RB_TRIAL_HANG="RANK PHASE N KIND FILE": at the N-th beat of this rank in this phase. FILE is written first, with the host's monotonic time. KIND:

    stopped   SIGSTOP
    loop      an endless loop in Python
    library   a call into C that does not return in the lifetime of the universe and keeps the interpreter's lock: no other thread of the rank runs
"""

from __future__ import annotations

import os
import re
import signal
import time
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

    left, beat = int(number), heartbeat.beat

    def beat_or_hang() -> None:
        nonlocal left
        beat()
        if heartbeat.watched() and heartbeat.current_phase() == phase:
            left -= 1
            if left == 0:
                hang(kind, Path(file))

    if os.environ["RANK"] == rank:
        heartbeat.beat = beat_or_hang


if "RB_HEARTBEAT" in os.environ and "RANK" in os.environ and (asked := os.environ.get("RB_TRIAL_HANG")):
    install(*asked.split())
