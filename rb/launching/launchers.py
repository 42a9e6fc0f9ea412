"""The real launchers, each asked for one thing: to start one agent on every node of a job. Their command lines, and their processes.

- ``pdsh``: DeepSpeed's own command (`deepspeed --hostfile`), which goes through pdsh and ssh.
- ``ssh``: one ssh for each node, where pdsh is missing, or DeepSpeed's two extra processes a node are not wanted.
- ``slurm``: srun, within a job.
- ``torchrun``: on every node by its user or platform, without ssh between nodes.

None of them sees the ranks: their exit codes, signals and time limits do not matter.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from rb.core.install import import_path

PDSH, SSH, SLURM, TORCHRUN = LAUNCHERS = ("pdsh", "ssh", "slurm", "torchrun")
AGENT = "rb.launching.agent"
# A host that does not answer is told apart before (`reach.py`); here nothing may ask for a password or wait for ever.
SSH_OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=10", "-T")
NO_ENV_FILE = ".no_deepspeed_env"  # DeepSpeed's runner puts its file on a command line; the job file carries it instead
_END_S = 5.0


@dataclass(frozen=True)
class Place:
    """One node of a job: how the launcher calls it, and how many ranks it gets."""

    host: str
    num_ranks: int


def agent_command(job_file: Path) -> list[str]:
    """What runs on every node."""
    return [sys.executable, "-u", "-m", AGENT, "--job", str(job_file)]


def deepspeed_commands(job_file: Path, places: Sequence[Place], port: int) -> list[list[str]]:
    """DeepSpeed's runner, with one process a node. Writes its hostfile beside the job file."""
    hosts = job_file.with_name("hostfile")
    hosts.write_text("".join(f"{place.host} slots=1\n" for place in places), encoding="utf-8")
    runner = [
        sys.executable,
        "-m",
        "deepspeed.launcher.runner",
        "--hostfile",
        str(hosts),
        "--force_multi",
        "--no_ssh_check",
    ]
    runner += ["--master_addr", places[0].host, "--master_port", str(port), "--log_level", "error"]
    runner += ["--launcher_args=-b"]  # of pdsh: SIGINT ends it, once is enough; otherwise it only lists its connections
    # It gives its one process the first GPU alone.
    return [[*runner, "--module", AGENT, "--job", str(job_file), "--all-devices"]]


def ssh_commands(job_file: Path, places: Sequence[Place]) -> list[list[str]]:
    """One ssh for each node."""
    path = import_path()["PYTHONPATH"]
    commands = []
    for number, place in enumerate(places):
        remote = ["env", f"PYTHONPATH={path}", *agent_command(job_file), "--node", str(number)]
        line = f"cd {shlex.quote(os.getcwd())} && exec {shlex.join(remote)}"  # noqa: PTH109 (links as they are)
        commands.append(["ssh", *SSH_OPTIONS, "--", place.host, line])
    return commands


def srun_commands(job_file: Path, places: Sequence[Place]) -> list[list[str]]:
    """Slurm's srun, with one task a node that sees all of the node's share (without --exact a step has all of the job's cores, memory and GPUs).

    srun must not get SIGTERM while agents run: it answers with SIGKILL to all of them (tried: 22.05). Slurm itself sends SIGTERM to every process
    of the step when a job is preempted or cancelled.
    """
    nodes = ["--nodes", str(len(places)), "--ntasks", str(len(places)), "--ntasks-per-node", "1"]
    names = ["--nodelist", ",".join(place.host for place in places)]
    calm = ["--kill-on-bad-exit=0", "--wait=0", "--input=none", "--unbuffered", "--mpi=none", "--export=ALL"]
    return [["srun", *nodes, *names, *calm, *agent_command(job_file)]]


def torchrun_commands(job_file: Path, num_nodes: int, node: int, address: str, port: int) -> list[list[str]]:
    """Torch's launcher on this node, which waits for those on the other nodes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(num_nodes), "--node-rank", str(node)]
    torchrun += ["--nproc-per-node", "1", "--master-addr", address, "--master-port", str(port), "--max-restarts", "0"]
    # It prints a page about every exit code but 0.
    return [[*torchrun, "-m", AGENT, "--job", str(job_file), "--end-well"]]


class Launched:
    """The processes of a launcher."""

    def __init__(self, commands: Sequence[Sequence[str]], environment: Mapping[str, str]) -> None:
        variables = import_path() | dict(environment) | {"DS_ENV_FILE": NO_ENV_FILE}
        # In sessions of their own: Ctrl-C in a terminal must reach the ranks through the controller, once.
        self._processes = [
            subprocess.Popen(command, env=variables, start_new_session=True, stdin=subprocess.DEVNULL)
            for command in commands
        ]

    def ended(self) -> str:
        """A sentence where one of them has ended; empty while all run."""
        for process in self._processes:
            code = process.poll()
            if code is not None:
                name = " ".join(map(str, process.args[:1])) if isinstance(process.args, list) else "launcher"
                how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
                return f"the launcher ({Path(name).name}) ended {how}"
        return ""

    def ask(self) -> None:
        """SIGTERM to the agents that they have started here: torchrun would end its own after 30 seconds."""
        for process in self._processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children(recursive=True):
                    if AGENT in child.cmdline():
                        child.terminate()

    def ended_by_request(self) -> bool:
        """Whether one was ended by SIGTERM, or ended as srun does where SIGTERM met an agent before Python had started in it."""
        return any(process.poll() in (-signal.SIGTERM, 128 + signal.SIGTERM) for process in self._processes)

    def wait(self, seconds: float) -> bool:
        """Wait for their end, so long in all; whether all have ended."""
        end = time.monotonic() + seconds
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
        return all(process.poll() is not None for process in self._processes)

    def end(self) -> None:
        """End them: nothing depends on them any more."""
        if not self.wait(_END_S):
            for number in (signal.SIGTERM, signal.SIGKILL):
                for process in self._processes:
                    # The whole session: pdsh's ssh, which outlives it.
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, number)
                if self.wait(1.0):
                    break
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
