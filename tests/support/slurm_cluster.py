"""A real Slurm cluster on one machine: hosts of `hosts.py`, a `slurmd` on each, and `slurmctld` with munge on one more.

Sizes of the nodes are what the configuration here says, not what the machine has; their GPUs are device files that nobody opens. What a trial
waits for takes seconds here and minutes on a real cluster: Slurm's own names of these times are in `Times`.

Needs Debian's packages slurm-wlm and munge, besides what `hosts.py` needs.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import pytest

from tests.support.hosts import NEEDED, Host, hosts

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
DAEMONS = ("slurmctld", "slurmd", "munged")
GPUS = 8  # of each node
PATIENCE_S = 120  # for a daemon to answer, on a machine that is busy with other things
ENDED = ("COMPLETED", "FAILED")  # a job does not leave these states
# Jobs of `low` are preempted by jobs of `high`.
CONFIGURATION = """\
ClusterName=trial
SlurmctldHost={head}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={requeue_s}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout={silence_s}
MinJobAge=3600
KillWait={kill_wait_s}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName={nodes} CPUs=16 CoresPerSocket=16 RealMemory=64000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace_s} DefMemPerCPU=100
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF DefMemPerCPU=100
"""


@dataclass(frozen=True)
class Times:
    """Slurm's times, in seconds."""

    grace_s: int = 120
    """Between SIGTERM and the end of a job that is preempted (GraceTime)."""
    kill_wait_s: int = 60
    """Between SIGTERM and SIGKILL of a job that is cancelled or at its limit (KillWait)."""
    silence_s: int = 20
    """Silence after which a node is down (SlurmdTimeout)."""
    requeue_s: int = 120
    """A job that was requeued waits for so long at least (cred_expire; less may fail on a slow machine)."""


class Cluster:
    """Slurm on some nodes. Made by `slurm_cluster`.

    Attributes:
        folder: for everything that the daemons write.
        head: the host of slurmctld, where jobs are submitted.
        nodes: the hosts that jobs run on.
    """

    def __init__(self, folder: Path, head: Host, nodes: list[Host], times: Times) -> None:
        self.folder, self.head, self.nodes = folder, head, nodes
        (folder / "state").mkdir()
        names = ",".join(node.name for node in nodes)
        text = CONFIGURATION.format(head=head.name, folder=folder, nodes=names, gpus=GPUS, **asdict(times))
        (folder / "slurm.conf").write_text(text)
        # Slurm counts these devices, and sets CUDA_VISIBLE_DEVICES by the numbers in their names.
        for number in range(GPUS):
            os.mknod(folder / f"gpu{number}", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n")
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        for host in (head, *nodes):
            host.environment["SLURM_CONF"] = str(folder / "slurm.conf")

    def start(self) -> None:
        """Start the daemons, wait until every node is there."""
        files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid"}
        files |= {"log-file": "munge.log", "seed-file": "munge.seed"}
        options = [f"--{option}={self.folder / name}" for option, name in files.items()]
        self.run("munged", "--force", "--num-threads=2", *options)
        self.run("slurmctld", "-c")
        for node in self.nodes:
            node.run("slurmd").finish()
        self.wait(lambda: self.node_states() == {"idle"}, "all nodes idle")

    def switch_on(self, node: Host) -> None:
        """Start a node that was killed."""
        node.start()
        node.run("slurmd").finish()

    def clean(self) -> None:
        """After a trial that may have failed: no job, nothing of one on the nodes, all nodes on and idle."""
        for number in self.run("squeue", "--noheader", "--format=%A").split():
            self.run("scancel", number)
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()
        for node in self.nodes:
            if not node.alive:
                self.switch_on(node)
            elif not node.processes("slurmd"):
                node.run("slurmd").finish()
        for node in self.nodes:
            if any(
                word in self.run("sinfo", "--noheader", "--nodes", node.name, "--format=%t")
                for word in ("down", "drain")
            ):
                self.run("scontrol", "update", f"NodeName={node.name}", "State=RESUME")
        self.wait(lambda: self.node_states() == {"idle"}, "all nodes idle")

    def run(self, *words: object) -> str:
        """Run a command on the head; what it printed."""
        return self.head.run(*words).finish()

    def submit(self, *words: object) -> str:
        """`sbatch WORDS`; the job's number."""
        return self.run("sbatch", "--parsable", *words).split()[-1]

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says: JobState, Restarts, ExitCode, Reason..."""
        said = self.run("scontrol", "--oneliner", "show", "job", number)
        return dict(word.split("=", 1) for word in said.split() if "=" in word)

    def wait_for(self, number: str, *states: str, within_s: float = 300) -> dict[str, str]:
        """Wait until a job is in one of some states; what `scontrol show job` says then. `AssertionError` where it ends in another."""
        self.wait(
            lambda: self.job(number)["JobState"] in (*states, *ENDED),
            f"job {number} is {' or '.join(states)}",
            within_s,
        )
        said = self.job(number)
        assert said["JobState"] in states, (
            f"job {number} is {said['JobState']}, not {' or '.join(states)}\n{self.logs()}"
        )
        return said

    def go_on(self, number: str) -> None:
        """Start a job that was requeued sooner than Slurm would, which waits since the nodes may still have something of the earlier start.

        Not in the second of the earlier end: the nodes refuse such a start ("Job credential revoked"), since they compare whole seconds.
        """
        self.wait(lambda: self.job(number)["JobState"] == "PENDING", f"job {number} is requeued")
        self.run("scontrol", "update", f"JobId={number}", "StartTime=now+2")

    def node_states(self) -> set[str]:
        """The states of all nodes: idle, mix, down..."""
        return set(self.run("sinfo", "--noheader", "--Node", "--format=%t").split())

    def processes(self) -> list[psutil.Process]:
        """What runs on the nodes besides Slurm's daemons: what jobs have started, and Slurm's keepers of it (slurmstepd)."""
        found = []
        for node in self.nodes:
            for process in node.processes():
                with suppress(psutil.Error):
                    if process.name() not in DAEMONS:
                        found.append(process)
        return found

    def command_lines(self) -> list[list[str]]:
        """Of all ``processes`` that are still there."""
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                found.append(process.cmdline())
        return found

    def wait(self, done: Callable[[], bool], what: str, within_s: float = PATIENCE_S) -> None:
        """Wait for something; ``AssertionError`` with the daemons' logs where it does not come."""
        deadline = time.monotonic() + within_s
        while not done():
            assert time.monotonic() < deadline, f"not within {within_s} s: {what}\n{self.logs()}"
            time.sleep(0.1)

    def logs(self) -> str:
        """The last lines of the daemons' logs."""
        files = sorted(self.folder.glob("*.log"))
        return "\n".join(f"== {file.name}\n" + "\n".join(file.read_text().splitlines()[-40:]) for file in files)


@contextmanager
def slurm_cluster(nodes: int = 2, times: Times | None = None) -> Iterator[Cluster]:
    """A running cluster, which is gone afterwards. Where none can be made the test is skipped; with RB_NEED_HOSTS=1 it fails."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    if missing := [program for program in PROGRAMS if shutil.which(program, path=path) is None]:
        if os.environ.get(NEEDED):
            pytest.fail(f"{NEEDED} is set, but {', '.join(missing)} not installed")
        pytest.skip(f"no Slurm cluster: {', '.join(missing)} not installed")
    # Not pytest's folder: the path of a socket has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with hosts(nodes + 1, folder / "hosts") as them:
            cluster = Cluster(folder, them[-1], them[:-1], times or Times())
            cluster.start()
            yield cluster
