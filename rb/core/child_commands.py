"""The project's own commands as processes: each with a log file, several side by side from threads, stopped together.

Used by what runs a plan (``rb ablate``, ``rb evaluate``), which reads off the files what is there and starts what is missing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rb.core.install import import_path
from rb.core.stopping import PARENT_VARIABLE

TAIL = 12  # lines of a failed command's log that are shown


class StoppedError(Exception):
    """The whole job was asked to stop."""


class FailedError(Exception):
    """A command failed; the message names it and its log, ``code`` is its exit code (a signal's number below 0)."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Processes:
    """Runs commands, each with its output in a log file, and stops the running ones together."""

    def __init__(self, logs: Path, rb: Sequence[str]) -> None:
        self._logs, self._lock = logs, threading.Lock()
        self.rb = tuple(rb)  # how the command rb is started
        self._running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False
        logs.mkdir(parents=True, exist_ok=True)

    def run(self, log: str, command: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
        """One command to its end, its output appended to the log of this name; ``variables`` join its environment.

        Raises:
            StoppedError: ``stop`` was called.
            FailedError: it ended with another code than 0.
        """
        path = self._logs / f"{log}.log"
        environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **import_path()}
        environment[PARENT_VARIABLE] = str(os.getpid())  # a training stops when this process is killed
        if not _has_gpu():
            environment["DS_ACCELERATOR"] = "cpu"
        environment |= variables or {}
        with path.open("ab", buffering=0) as file:
            with suppress(OSError):  # a full disk; the command is the work, not its log
                file.write(f"$ {' '.join(command)}\n".encode())
            with self._lock:
                if self.stopped:
                    raise StoppedError
                # Its own session, so that Ctrl-C reaches it once, through ``stop``.
                process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
                self._running.add(process)
            code = process.wait()
        with self._lock:
            self._running.discard(process)
            if self.stopped:
                raise StoppedError
        if code:
            tail = "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:])
            raise FailedError(f"{' '.join(command[:4])} ... ended with exit code {code}; {path} ends:\n{tail}", code)

    def stop(self) -> None:
        """Ask every running command to stop; trainings save first. No other is started."""
        with self._lock:
            self.stopped = True
            for process in self._running:
                process.send_signal(signal.SIGTERM)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
