"""A wish to end this process: SIGTERM, SIGINT, or the end of the process that started it. Both are seen even while Python waits in a library.

In start-up there is nothing to save, so the process leaves at once, with the exit code STOPPED. Once it takes steps, the wish is only noted, and
granted between two steps (`rb/training/loop.py`). One that gets nowhere after its launcher has ended, since it waits for a rank that is gone, is
ended here. So nobody outlives their launcher, holding a run folder's lock.

Imports nothing heavy: the ranks make a `StopRequest` before they import torch.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable

import psutil

from rb.core import heartbeat
from rb.core.exit_codes import HUNG, STOPPED

PARENT_VARIABLE = "RB_PARENT_PID"  # environment variable of what we start: the process whose end is a request to stop
LAUNCHER_ENDED = "the end of its launcher"
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_POLL_S = 0.5
ORPHAN_S = 60.0  # without progress after the launcher's end


class Parents:
    """The processes that this one must not outlive: the one that PARENT_VARIABLE names and, if it was launched, its own parent.

    Args:
        launched: a launcher started it. A person's shell may end before what it started.
    """

    def __init__(self, launched: bool) -> None:
        self._parent = os.getppid() if launched else 0
        self._named: psutil.Process | None = None
        named = os.environ.get(PARENT_VARIABLE, "")
        self._gone = False
        if named.isdigit():
            try:
                self._named = psutil.Process(int(named))
            except psutil.NoSuchProcess:
                self._gone = True

    def gone(self) -> bool:
        """Whether one of them has ended."""
        if not self._gone:
            self._gone = bool(self._parent and os.getppid() != self._parent) or not lives(self._named)
        return self._gone


class StopRequest:
    """The wish of this process's user or launcher that it ends. Make it first thing, in the main thread, and once."""

    def __init__(self) -> None:
        self.reason = ""
        """Why, for the log: "SIGTERM"; empty while nobody asked."""
        self.patience_s = 600.0
        """How long it may live on after its launcher's end where progress cannot be seen: nobody watches, or a checkpoint is being saved."""
        self.describe: Callable[[], str] = str
        """What to write behind the Python stacks when a supervisor asks for them."""
        self._starting = True
        self._alone_since = 0.0
        self._parents = Parents(launched="RANK" in os.environ)
        self._lock = threading.Lock()
        # C code writes a signal's number into this pipe even while the main thread waits in a collective or a read.
        self._numbers, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, _do_nothing)
        os.register_at_fork(after_in_child=_write_no_numbers)
        threading.Thread(target=self._watch, daemon=True, name="stop request").start()

    def start_steps(self) -> None:
        """Start-up is over: from now on a wish waits until `reason` is looked at."""
        with self._lock:
            self._starting = False

    def _watch(self) -> None:
        while True:
            ready, _, _ = select.select([self._numbers], [], [], _POLL_S)
            numbers = os.read(self._numbers, 64) if ready else b""
            if signal.SIGUSR1 in numbers:
                with contextlib.suppress(
                    Exception
                ):  # whatever goes wrong in a rank that hangs: this thread must live on
                    heartbeat.add_to_stacks(self.describe())
            asked = [number for number in numbers if number in _SIGNALS]
            gone = self._parents.gone()
            if not self.reason and (asked or gone):
                self._note(signal.Signals(asked[0]).name if asked else LAUNCHER_ENDED)
            if gone:
                self._end_if_stuck()

    def _end_if_stuck(self) -> None:
        """End this process if it makes no progress after its launcher's end: nobody else would."""
        self._alone_since = self._alone_since or time.monotonic()
        alone_s = time.monotonic() - self._alone_since
        seen = heartbeat.watched() and heartbeat.current_phase() != heartbeat.SAVING
        if (min(alone_s, heartbeat.silent_s()) if seen else alone_s) > (ORPHAN_S if seen else self.patience_s):
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(f"no progress since {LAUNCHER_ENDED}; this process ends with code {HUNG}\n")
                faulthandler.dump_traceback(sys.stderr)
                sys.stderr.flush()
            os._exit(HUNG)

    def _note(self, reason: str) -> None:
        # One wish is enough: a launcher may send several signals, and none of them may cut a checkpoint short.
        with self._lock:
            self.reason = reason
            if self._starting:
                _leave_start_up(reason)


def _leave_start_up(reason: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"stopped by {reason}; there is nothing to save yet, the same command starts again\n")
        sys.stderr.flush()
    os._exit(STOPPED)


def _do_nothing(*_: object) -> None:
    """A handler, so that the signal does not end the process and its number gets into the pipe."""


def _write_no_numbers() -> None:
    """In a forked child, such as a loader worker: its signals are not the parent's."""
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)


def lives(process: psutil.Process | None) -> bool:
    """Whether a process still runs; one that has ended and that nobody waits for does not."""
    try:
        return process is None or (process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
