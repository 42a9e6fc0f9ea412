"""Processes for tests: ranks and jobs that must be real processes, without 5 to 8 seconds of imports for each.

One server imports torch, transformers, DeepSpeed and MLflow once per test session (Python's own ``forkserver``). Every process started here is a
fork of it, and then runs a module as ``python -m`` does, or a function: in its own session, with its own environment, output and exit code.
Tests of an entry itself (``rb``, the deepspeed launcher, a script in the documentation) start a plain ``python`` instead.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
# Libraries and rooms, but no entry: an entry runs as __main__.
PRELOAD = ("torch", "transformers", "peft", "deepspeed", "mlflow.tracking", "pytest", "rb.training.loop")
TIMEOUT_S = 240

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(list(PRELOAD))


class Started:
    """A process, running or ended.

    Attributes:
        pid: its number, also of its session and process group.
    """

    def __init__(
        self, target: Callable[..., object], arguments: tuple[Any, ...], environment: Mapping[str, str]
    ) -> None:
        self._output = tempfile.NamedTemporaryFile("r", errors="replace")  # noqa: SIM115 (deleted with this object)
        variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        self._process = _context.Process(target=_run, args=(target, arguments, variables, self._output.name))
        _ensure_server()
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Its exit code, none while it runs; -9 where SIGKILL ended it."""
        return self._process.exitcode

    def wait(self, timeout: float = TIMEOUT_S) -> int:
        """Its exit code, once it has ended."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.send(signal.SIGKILL)
            raise TimeoutError(f"no end in {timeout} s; its output:\n{self.output()}")
        return self._process.exitcode

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it and to all that it has started."""
        while self.poll() is None and os.getpgid(self.pid) != self.pid:
            time.sleep(0.01)  # it was forked a moment ago and has no process group yet
        os.killpg(self.pid, number)

    def output(self) -> str:
        """All that it has written to stdout and stderr."""
        self._output.seek(0)
        return self._output.read()


class Forked:
    """Stands for ``subprocess.Popen`` of ``python -m MODULE ...`` in code under test: a fork of the server instead, also from threads."""

    _lock = threading.Lock()  # a fork's exit code is read once, and starting one looks after all others

    def __init__(self, command: Sequence[str], stdout: IO[bytes], env: Mapping[str, str], **_: object) -> None:
        assert list(command[:2]) == [sys.executable, "-m"], command
        self._file = stdout
        with self._lock:
            self._started = start(command[2], *command[3:], **env)

    def wait(self) -> int:
        while True:
            with self._lock:
                code = self._started.poll()
            if code is not None:
                self._file.write(self._started.output().encode())
                return code
            time.sleep(0.02)

    def send_signal(self, number: signal.Signals) -> None:
        self._started.send(number)


def start(module: str, *arguments: object, **environment: str) -> Started:
    """``python -m module arguments``, in the repository's root."""
    return Started(run_module, (module, [str(argument) for argument in arguments]), environment)


def start_function(function: Callable[..., object], *arguments: object, **environment: str) -> Started:
    """A call of a function of a module (pickled by name) with arguments that pickle can carry."""
    return Started(function, arguments, environment)


def start_ranks(number: int, module: str, *arguments: object, **environment: str) -> list[Started]:
    """A module in ``number`` processes that see each other, as any launcher starts them."""
    return [start(module, *arguments, **variables, **environment) for variables in _of_ranks(number)]


def start_function_ranks(number: int, function: Callable[..., object], *arguments: object) -> list[Started]:
    """A function in ``number`` processes that see each other."""
    return [start_function(function, *arguments, **variables) for variables in _of_ranks(number)]


def finish(*started: Started, code: int = 0, timeout: float = TIMEOUT_S) -> str:
    """The output of processes that all must end with this code."""
    codes = [process.wait(timeout) for process in started]
    output = "".join(process.output() for process in started)
    assert set(codes) == {code}, f"exit codes {codes}\n{output}"
    return output


def free_port() -> int:
    """A port of this host that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _of_ranks(number: int) -> list[dict[str, str]]:
    shared = {
        "WORLD_SIZE": str(number),
        "LOCAL_SIZE": str(number),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(number)]


def _ensure_server() -> None:
    """Start the server if it does not run yet; it must import this checkout's ``rb``."""
    earlier = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    try:
        forkserver.ensure_running()
    finally:
        if earlier is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = earlier


def _run(target: Callable[..., object], arguments: tuple[Any, ...], environment: dict[str, str], output: str) -> None:
    """In the new process, first of all."""
    os.setsid()
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    for number in (1, 2):
        os.dup2(file, number)
    os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    # As in a plain process; a child of a fork server would start loader processes by a fork server of its own, which imports everything again.
    multiprocessing.set_start_method("fork", force=True)
    target(*arguments)


def run_module(module: str, arguments: list[str]) -> None:
    """``python -m module arguments``, in this process."""
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
