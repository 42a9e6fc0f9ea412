"""The ranks of one node: started, watched, signalled, ended. Used by the agent of a node, and by `rb train` and `rb predict` for this host.

A rank is a plain process in a session of its own, so that Ctrl-C in a terminal reaches only who supervises it, and so that it can be ended
with its loader workers. It writes signs of progress into a file that is made here (`rb/core/heartbeat.py`). A second process, the guard, ends
ranks that hang after their supervisor was killed (`guard.py`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from rb.core import heartbeat
from rb.core.install import import_path
from rb.core.ranks_here import NO_DEVICE, VISIBLE, devices_of_ranks
from rb.core.stopping import PARENT_VARIABLE
from rb.launching.states import NodeState, RankState

_LONGEST_STACKS = 1 << 20  # bytes of one rank's stacks


@dataclass(frozen=True)
class Assignment:
    """What a node is to start."""

    module: str
    """Run as ``python -m``, once for each rank."""
    arguments: tuple[str, ...]
    world_size: int
    first_rank: int
    """Of this node."""
    num_ranks: int
    """Of this node."""
    master_address: str
    master_port: int
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that the ranks get besides this process's own."""


class _Rank:
    """One started rank."""

    def __init__(self, rank: int, process: subprocess.Popen[bytes], beats: Path) -> None:
        self.rank, self.process, self.beats = rank, process, beats
        self.started = time.monotonic()
        self.ended = 0.0
        self.beat: heartbeat.Beat | None = None
        self._view = psutil.Process(process.pid)

    def state(self) -> RankState:
        now, code = time.monotonic(), self.process.poll()
        if code is not None:
            code, self.ended = 128 - code if code < 0 else code, self.ended or now  # as a shell shows it
        with contextlib.suppress(OSError):
            self.beat = heartbeat.read(self.beats) or self.beat
        stopped = False
        if code is None:
            with contextlib.suppress(psutil.Error):
                stopped = self._view.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
        newest = self.started
        if self.beat is not None:
            newest = max(self.beat.time, self.beat.written if self.beat.phase == heartbeat.SAVING else 0.0)
        return RankState(
            rank=self.rank,
            pid=self.process.pid,
            code=code,
            ended_s=now - self.ended if self.ended else 0.0,
            stopped=stopped,
            beat=self.beat,
            silent_s=now - newest,
            write_silent_s=now - self.beat.written if self.beat and self.beat.written else 0.0,
        )

    def stacks(self) -> str:
        with contextlib.suppress(OSError):
            return (
                Path(f"{self.beats}{heartbeat.STACKS_SUFFIX}").read_bytes()[-_LONGEST_STACKS:].decode(errors="replace")
            )
        return ""


class Node:
    """The ranks of this host, for one supervisor.

    Args:
        number: of the node, 0 for the one with rank 0.
        host: its name for people.
        stopped_s: the supervisor counts as dead once it is stopped (SIGSTOP) for so long; 0: never.
    """

    def __init__(self, number: int, host: str, stopped_s: float = 0.0) -> None:
        self.number, self.host, self._stopped_s = number, host, stopped_s
        self.asked = ""
        """Why this node wants the job to stop; empty while it does not."""
        self._ranks: list[_Rank] = []
        self._folder = Path(tempfile.mkdtemp(prefix="rb-ranks-"))
        self._guard: subprocess.Popen[bytes] | None = None
        self._starts = 0

    def start(self, assignment: Assignment) -> None:
        """Start the ranks. Those of an earlier assignment must have ended.

        Raises:
            ValueError: this host has fewer GPUs than it should have ranks.
        """
        assert all(rank.process.poll() is not None for rank in self._ranks), "ranks of an earlier start still run"
        devices = devices_of_ranks(assignment.num_ranks)
        shared = import_path() | dict(assignment.environment) | {PARENT_VARIABLE: str(os.getpid())}
        shared |= {
            "WORLD_SIZE": str(assignment.world_size),
            "LOCAL_SIZE": str(assignment.num_ranks),
            "LOCAL_WORLD_SIZE": str(assignment.num_ranks),
            "MASTER_ADDR": assignment.master_address,
            "MASTER_PORT": str(assignment.master_port),
            VISIBLE: ",".join(devices),
        }
        if NO_DEVICE in devices:
            shared |= {VISIBLE: NO_DEVICE, "DS_ACCELERATOR": "cpu"}
        self._starts += 1
        folder = self._folder / str(self._starts)
        folder.mkdir()
        self._ranks = []
        try:
            for place in range(assignment.num_ranks):
                rank = assignment.first_rank + place
                beats = folder / f"rank{rank}"
                heartbeat.make(beats)
                own = {"RANK": str(rank), "LOCAL_RANK": str(place), heartbeat.VARIABLE: str(beats)}
                command = [sys.executable, "-u", "-m", assignment.module, *assignment.arguments]
                process = subprocess.Popen(command, env=shared | own, start_new_session=True, stdin=subprocess.DEVNULL)
                self._ranks.append(_Rank(rank, process, beats))
                self._tell_guard(process.pid, beats)
        except BaseException:
            self.kill()
            raise

    def poll(self) -> NodeState:
        """What is known of the ranks now."""
        return NodeState(self.number, self.host, tuple(rank.state() for rank in self._ranks), asked=self.asked)

    def signal(self, number: int) -> None:
        """Send a signal to every rank that runs (not to its loader workers)."""
        for rank in self._ranks:
            if rank.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    rank.process.send_signal(number)

    def stop(self) -> None:
        """Ask every rank to save and leave."""
        self.signal(signal.SIGTERM)

    def ask_stacks(self) -> None:
        """Have every rank that can write its Python stacks; ``stacks`` has them a moment later.

        A rank that has not made its first beat cannot: the signal would end it.
        """
        for rank in self._ranks:
            if rank.beat is not None and rank.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    rank.process.send_signal(signal.SIGUSR1)

    def stacks(self) -> dict[int, str]:
        """Python stacks by rank, of those that have written them."""
        return {rank.rank: text for rank in self._ranks if (text := rank.stacks())}

    def kill(self) -> None:
        """End every rank at once, with its loader workers."""
        for rank in self._ranks:
            end_session(rank.process.pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                rank.process.wait(10)

    def close(self) -> None:
        """End what may be left, and remove what was made."""
        self.kill()
        if self._guard is not None and self._guard.stdin is not None:
            with contextlib.suppress(OSError):
                self._guard.stdin.write(b"done\n")
                self._guard.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._guard.wait(10)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _tell_guard(self, pid: int, beats: Path) -> None:
        if self._guard is None:
            command = [sys.executable, "-m", "rb.launching.guard", str(self._folder), str(self._stopped_s)]
            # In a session of its own: what ends this process must not end the guard.
            self._guard = subprocess.Popen(command, env=import_path(), stdin=subprocess.PIPE, start_new_session=True)
        assert self._guard.stdin is not None
        with contextlib.suppress(OSError):
            self._guard.stdin.write(f"{pid} {beats.relative_to(self._folder)}\n".encode())
            self._guard.stdin.flush()


def end_session(leader: int) -> None:
    """SIGKILL to the process group that a rank leads: itself and its loader workers."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
