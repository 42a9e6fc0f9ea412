"""Finds Java and pycocoevalcap's jars and runs one Java tool as a separate process that cannot hang, shift or outlive us.

Options for every JVM in the environment (``_JAVA_OPTIONS`` and its siblings) are kept from the tools: they get ours only.

Used by the tokeniser, METEOR, SPICE and ``rb metrics doctor``. Holds nothing about what the tools compute.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

HOW_TO_GET_JAVA = (
    "install a Java runtime, 17 to 25 (Debian, Ubuntu: apt-get install default-jre-headless), or point JAVA_HOME at one"
)

# Options in these apply to every JVM, the last even against a command line: -Duser.language=de, -Xmx512m, another garbage collector.
OVERRIDING = ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS")
# Without these a German JVM writes "0,5" and an ASCII one loses accents; both are the tools' own habits, not ours.
LOCALE_OPTIONS = ("-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8")

# The JVM leaves at once with this status when its heap is full; without it, a tool whose thread died may go on without it.
LEAVE_WHEN_FULL = "-XX:+ExitOnOutOfMemoryError"
STATUS_FULL = 3

STARTS: Counter[str] = Counter()  # tool to how many processes of it this process has started


class JavaMissingError(ValueError):
    """No usable Java; the message says how to get one."""


class JavaToolError(RuntimeError):
    """A Java tool ended badly, took too long or answered something we cannot read."""


class JavaTimeoutError(JavaToolError):
    """A Java tool was ended at its time limit."""


class JavaMemoryError(JavaToolError):
    """A Java tool ended because its heap was full."""


@dataclass(frozen=True)
class Java:
    """One Java runtime: path of its executable and its version, such as ``17.0.15``."""

    path: str
    version: str

    @property
    def major(self) -> int:
        """8 for ``1.8.0_292``, 17 for ``17.0.15``, 25 for ``25-ea``."""
        numbers = [int(n) for n in re.findall(r"\d+", self.version)]
        return numbers[1] if numbers[0] == 1 and len(numbers) > 1 else numbers[0]


def find_java() -> Java:
    """The Java of ``JAVA_HOME``, else the one on ``PATH``; raises ``JavaMissingError`` with the remedy."""
    home = os.environ.get("JAVA_HOME")
    path = shutil.which("java", path=str(Path(home) / "bin")) if home else None
    path = path or shutil.which("java")
    if path is None:
        raise JavaMissingError(f"no Java found; {HOW_TO_GET_JAVA}")
    try:
        answer = subprocess.run(
            [path, "-version"],
            env=_environment(),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JavaMissingError(f"{path} does not start ({error}); {HOW_TO_GET_JAVA}") from error
    found = re.search(r'version "([^"]*\d[^"]*)"', answer.stderr + answer.stdout)
    if answer.returncode != 0 or found is None:
        raise JavaMissingError(f"{path} -version failed: {last_words(answer.stderr)}; {HOW_TO_GET_JAVA}")
    return Java(path, found.group(1))


def coco_jars() -> Path:
    """Folder of the installed ``pycocoevalcap``, whose sub-folders hold the jars (it is a namespace package without ``__file__``)."""
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("pycocoevalcap is not installed; pip install pycocoevalcap")
    return Path(next(iter(spec.submodule_search_locations)))


def heap_option(wanted_gb: int) -> str:
    """``-Xmx`` of at most ``wanted_gb``, at most half of what this machine or container may use, at least 1 GB."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = min(limit, int(Path(path).read_text()))
        except (OSError, ValueError):  # not this kind of cgroup, or "max"
            continue
    return f"-Xmx{max(1, min(wanted_gb, limit // 2**31))}G"


def java_command(java: Java, heap_gb: int, options: Sequence[str], temp: Path, call: Sequence[str]) -> list[str]:
    """A command line; what the tool unpacks goes to ``temp`` (ours, removed afterwards), never into site-packages."""
    return [java.path, *LOCALE_OPTIONS, heap_option(heap_gb), f"-Djava.io.tmpdir={temp}", *options, *call]


def run_tool(command: Sequence[str], name: str, timeout_s: float) -> str:
    """Runs a tool to its end and returns what it wrote to stdout.

    Output goes to files, so that no full pipe can block it; it is killed at the time limit and when we are interrupted.

    Raises:
        JavaToolError: bad exit status or (``JavaTimeoutError``) time limit, with the end of its stderr.
    """
    deadline = time.monotonic() + timeout_s
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with started(command, name, stdin=None, stdout=out, stderr=err) as process:
            while process.poll() is None:
                if time.monotonic() > deadline:
                    raise JavaTimeoutError(
                        f"{name} did not finish in {timeout_s:.0f} s; its stderr ends: {last_words(read_back(err))}"
                    )
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=1.0)
        if process.returncode != 0:
            raise JavaToolError(f"{name} ended with status {process.returncode}: {last_words(read_back(err))}")
        return read_back(out)


@contextmanager
def started(
    command: Sequence[str], name: str, stdin: int | None, stdout: int | IO[bytes], stderr: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """A started tool that is gone when the block is left, however that happens, and when this process is killed."""
    process: subprocess.Popen[bytes] | None = None
    try:
        with _signals_wait():
            process = _start(command, name, stdin, stdout, stderr)
        yield process
    finally:
        if process is not None:
            _end(process)


def _start(
    command: Sequence[str], name: str, stdin: int | None, stdout: int | IO[bytes], stderr: IO[bytes]
) -> subprocess.Popen[bytes]:
    STARTS[name] += 1
    try:
        return subprocess.Popen(
            [*_bound_to_us(), *command],
            env=_environment(),
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=stdout,
            stderr=stderr,
        )
    except OSError as error:
        raise JavaToolError(f"{name} does not start: {error}") from error


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:  # what was still unwritten goes to a process that is gone
                continue


@contextmanager
def _signals_wait() -> Iterator[None]:
    """SIGTERM and SIGINT wait until the block is left: one between the start of a process and its first name would leave it to nobody."""
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread only
        yield
        return
    came: list[int] = []
    earlier = {n: signal.signal(n, lambda number, _: came.append(number)) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
        for asked in came:
            signal.raise_signal(asked)


# Asks Linux to kill this process with its parent, leaves at once if the parent is gone already, and becomes the tool.
_BIND = (
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGKILL); "  # PR_SET_PDEATHSIG
    "os.getppid() == int(sys.argv[1]) or os._exit(1); os.execv(sys.argv[2], sys.argv[2:])"
)


def _bound_to_us() -> list[str]:
    """What stands before a command so that it ends with this process, by whatever that is ended. Linux only; 20 ms."""
    # A small program and no preexec_fn: that would run Python between fork and exec, which may hang in a process with threads.
    return [sys.executable, "-I", "-S", "-c", _BIND, str(os.getpid())] if sys.platform == "linux" else []


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in OVERRIDING}


def read_back(file: IO[bytes]) -> str:
    """All that was written to a temporary file."""
    file.seek(0)
    return file.read().decode("utf-8", errors="replace")


def last_words(text: str, characters: int = 300) -> str:
    """The end of a tool's output on one line, where the cause stands."""
    return " ".join(text.split())[-characters:] or "(nothing)"
