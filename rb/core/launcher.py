"""Starts the deepspeed launcher on this host and forwards signals to the ranks: `rb train` and `rb predict --ranks N`.

DeepSpeed's own runner leaves its ranks behind when it is stopped by SIGTERM. Here a stop goes to the ranks themselves, which save and
leave; and if this process is killed, training ranks notice it by PARENT_VARIABLE (`rb/training/agree.py`).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from types import FrameType

import psutil

from rb.core.exit_codes import STOPPED
from rb.core.install import import_path

PARENT_VARIABLE = "RB_PARENT_PID"  # environment variable of the ranks: the process whose end is a request to stop
POLL_S = 0.2


def launch_ranks(module: str, arguments: list[str], ranks: int | None) -> int:
    """Run `python -m module arguments` as `ranks` processes (none: one for each GPU, or one); return their exit code.

    SIGTERM and SIGINT are passed on to every rank; the launcher then waits for them to save and leave.
    """
    import torch

    on_gpu = torch.cuda.is_available()
    if on_gpu and ranks is not None and ranks > torch.cuda.device_count():
        raise ValueError(f"--ranks {ranks}: this host has {torch.cuda.device_count()} GPUs")
    count = ranks or (torch.cuda.device_count() if on_gpu else 1)
    command = [
        *(sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(count), "--log_level", "critical"),
        # A free port, so that two runs can share a host; no host file, so that a stray one does not spread this run over a cluster.
        *("--master_port", str(free_port()), "--hostfile", os.devnull),
        *("--module", module, *arguments),
    ]
    environment = import_path() | {PARENT_VARIABLE: str(os.getpid())}
    if not on_gpu:
        environment["DS_ACCELERATOR"] = "cpu"
    asked: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    earlier = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        # Its own session: Ctrl-C in a terminal must reach the ranks through here, once, and not kill the launcher above them.
        runner = subprocess.Popen(command, env=environment, start_new_session=True)
        passed_on = False
        while runner.poll() is None:
            if asked and not passed_on:
                passed_on = _pass_on(runner.pid)
            time.sleep(POLL_S)
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
    code = runner.returncode
    # A rank that was still starting up dies of SIGTERM, which DeepSpeed reports as 256 - 15.
    if asked and code in (STOPPED, 256 - signal.SIGTERM, -signal.SIGTERM):
        return STOPPED
    return code if code >= 0 else 128 - code


def _pass_on(runner: int) -> bool:
    """Send SIGTERM to the ranks, the grandchildren of the runner; before there are any, end the launcher itself."""
    try:
        launchers = psutil.Process(runner).children()
        ranks = [rank for launcher in launchers for rank in launcher.children()]
    except psutil.NoSuchProcess:
        return True
    if not ranks and launchers:
        return False  # they are about to be started: ask again at the next look
    for process in ranks or [psutil.Process(runner)]:
        try:
            process.send_signal(signal.SIGTERM)
        except psutil.NoSuchProcess:
            continue
    return True


def free_port() -> int:
    """A port of this host that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
