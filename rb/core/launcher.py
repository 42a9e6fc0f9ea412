"""Starts ranks on this host by DeepSpeed's launcher and forwards signals to them: `rb predict --ranks N`. Training has `rb/launching/`.

`deepspeed.launcher.launch` starts one host's ranks. `deepspeed`, the command above it, is left out: it drops CUDA_VISIBLE_DEVICES where a number of
GPUs is given, sorts the list, cannot read UUIDs or MIG names, and ends with 0 where a signal ended what it started.

The launcher leaves its ranks behind when it is killed. A stop goes to the ranks themselves, which save and leave; and they notice by themselves
when the launcher or this process ends (`rb/core/stopping.py`).
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from types import FrameType

import psutil

from rb.core.exit_codes import FAILED, STOPPED
from rb.core.install import import_path
from rb.core.output import note
from rb.core.stopping import PARENT_VARIABLE, Parents, lives

VISIBLE = "CUDA_VISIBLE_DEVICES"
NO_DEVICE = "-1"  # in VISIBLE: a device that does not exist; CUDA sees neither it nor what follows
POLL_S = 0.2


def launch_ranks(
    module: str, arguments: list[str], ranks: int | None, variables: Mapping[str, str] | None = None
) -> int:
    """Run `python -m module arguments` as `ranks` processes (none: one for each GPU, or one); return when all of them have ended.

    SIGTERM, SIGINT and the end of the process that PARENT_VARIABLE names are passed on to every rank; the launcher then waits for them to save
    and leave.

    Args:
        variables: environment variables that the ranks get besides this process's own.

    Returns:
        The exit code of the first rank that failed, else 0; 128 + N where signal N ended it, or the launcher.
    """
    devices = devices_of_ranks(ranks)
    world = base64.urlsafe_b64encode(json.dumps({"localhost": devices}).encode()).decode()
    command = [
        *(sys.executable, "-u", "-m", "deepspeed.launcher.launch", f"--world_info={world}", "--log_level=critical"),
        # A free port, so that two runs can share a host.
        *("--master_addr=127.0.0.1", f"--master_port={free_port()}", "--module", module, *arguments),
    ]
    environment = import_path() | {PARENT_VARIABLE: str(os.getpid())} | dict(variables or {})
    if NO_DEVICE in devices:
        environment["DS_ACCELERATOR"] = "cpu"
    parents, asked = Parents(launched=False), list[int]()

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    earlier = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        # Its own session: Ctrl-C in a terminal must reach the ranks through here, once, and not kill the launcher above them.
        launcher = subprocess.Popen(command, env=environment, start_new_session=True)
        told: list[psutil.Process] = []  # who was asked to stop, once somebody was

        def wait(ranks_now: Callable[[], list[psutil.Process]]) -> None:
            if not asked and parents.gone():
                asked.append(signal.SIGTERM)
            if asked and not told:
                told.extend(ranks_now() or [psutil.Process(launcher.pid)])
                _ask_to_stop(told)
            time.sleep(POLL_S)

        while launcher.poll() is None:
            wait(lambda: _ranks_of(launcher))
        # A killed launcher leaves its ranks behind: they save and leave. Most see its end themselves, but not those that were just starting.
        left_behind = _session(launcher.pid)
        _ask_to_stop(left_behind)
        while any(lives(rank) for rank in left_behind):
            wait(lambda: left_behind)
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
    code = shell_code(launcher.returncode)
    # What was asked to stop before Python had started in it dies of SIGTERM; the launcher alone ends with 1 after it has ended its ranks.
    early = (128 + signal.SIGTERM, FAILED) if told and told[0].pid == launcher.pid else (128 + signal.SIGTERM,)
    return STOPPED if asked and code in early else code


def shell_code(code: int) -> int:
    """A child's exit code as a shell shows it: 128 + N where signal N ended it. DeepSpeed reports a rank that signal N ended as 256 - N."""
    if code < 0:
        return 128 - code
    return 128 + 256 - code if code >= 256 - signal.NSIG else code


def devices_of_ranks(ranks: int | None) -> list[str]:
    """For each rank the device that CUDA_VISIBLE_DEVICES will name for it; `NO_DEVICE` for ranks on the CPU.

    Raises:
        ValueError: fewer devices than ranks.
    """
    devices = visible_devices()
    if not devices:
        return [NO_DEVICE] * (ranks or 1)
    if ranks is not None and ranks > len(devices):
        limit = f" ({VISIBLE}={os.environ[VISIBLE]})" if VISIBLE in os.environ else ""
        raise ValueError(f"--ranks {ranks}: this host has {len(devices)} GPUs for it{limit}")
    return devices[:ranks]


def visible_devices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them (numbers, UUIDs, MIG names), else by number; empty on a CPU.

    CUDA ends the list at the first device that it does not find; where that leaves some out, one line says so. DS_ACCELERATOR=cpu asks for none.
    """
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        return []
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if VISIBLE not in os.environ:
        return [str(number) for number in range(count)]
    listed = [name.strip() for name in os.environ[VISIBLE].split(",") if name.strip()]
    wanted = listed[: listed.index(NO_DEVICE)] if NO_DEVICE in listed else listed
    if len(wanted) > count:
        place = f"only {', '.join(wanted[:count])}" if count else "none of them; this runs on the CPU"
        note(
            f"{VISIBLE}={os.environ[VISIBLE]}: CUDA can use {place} (an unknown device ends the list; one MIG device a process)"
        )
    return wanted[:count]


def _ranks_of(launcher: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The launcher's children that it gave a rank."""
    try:
        return [child for child in psutil.Process(launcher.pid).children() if _has_rank(child)]
    except psutil.NoSuchProcess:
        return []


def _ask_to_stop(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)


def _session(leader: int) -> list[psutil.Process]:
    """The processes of a session, by the number of the process that began it and has ended."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == leader:
                found.append(process)
    return found


def _has_rank(child: psutil.Process) -> bool:
    try:
        return any(word.startswith("--local_rank=") for word in child.cmdline())
    except psutil.Error:
        return False


def free_port() -> int:
    """A port of this host that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
