"""A small training over several hosts (``hosts.py``) by `rb launch`, watched from outside: its ranks, their phases, faults, and how it ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import torch
import yaml

from rb.checkpoints import checkpoint
from rb.core import heartbeat
from rb.core.config import FoundationConfig
from rb.core.run_file import to_tree
from rb.tracking import metric_points
from tests.support import processes, small_data, tiny
from tests.support.hosts import Command, Host, Hosts

MOST = 1e-5  # between losses over hosts and on one
LOOK_S = 0.2  # between two looks at all processes, which cost time that the ranks need
START_S = 400  # a rank imports for seconds, on a busy machine for minutes
# Parts of command lines of the processes of a job, on any host.
CONTROLLER, AGENT, RANK, RUNNER, NODE_LAUNCHER = (
    "rb.cli launch",
    "rb.launching.agent",
    "-m rb.train",
    "launcher.runner",
    "launcher.launch",
)


class Runs:
    """Runs on point clouds, in one folder.

    Args:
        hosts: what they run on; those on one host need none.
        steps: of every run.
        batch: samples of a step; the default can be shared among 1, 2, 3, 4, 6 and 8 ranks.
    """

    def __init__(
        self, folder: Path, foundation: FoundationConfig, hosts: Hosts, steps: int = 16, batch: int = 24
    ) -> None:
        self.folder, self.hosts, self.steps = folder, hosts, steps
        self.file = folder / "run.yaml"
        self._plain: dict[int, Path] = {}
        for name, records, split in (("clouds", 7, "train"), ("held_out", 4, "val")):
            small_data.write_set(folder / name, "point_cloud", records, split)
        train = {"global_batch_size": batch, "micro_batch_size": 1, "contrastive_batch_size": batch}
        train |= {"max_steps": steps}
        train |= {"log_every": 1, "checkpoint_every": 4, "num_threads": 1, "ds_config": "ds_configs/zero2_cpu.json"}
        tree = {
            "name": "run",
            "output_dir": str(folder / "runs"),
            "model": to_tree(tiny.model_config(foundation)) | {"train_modalities": ["point_cloud"]},
            "data": {
                "train": {"point_cloud": [{"manifest": str(folder / "clouds")}]},
                "val": {"point_cloud": [{"manifest": str(folder / "held_out")}]},
                "num_workers": 0,
            },
            "train": train,
            "tracking": {"mlflow": False},
            "limits": {"node_s": 8},
        }
        self.file.write_text(yaml.safe_dump(tree))

    def path(self, name: str) -> Path:
        return self.folder / "runs" / name

    def plain(self, ranks: int) -> Path:
        """The run folder of the undisturbed run on this machine alone, with so many ranks; made once."""
        if ranks not in self._plain:
            name = f"plain{ranks}"
            processes.finish(*processes.start_ranks(ranks, "rb.train", "--run", self.file, f"name={name}"))
            self._plain[ranks] = self.path(name)
        return self._plain[ranks]

    def launch(self, name: str, *options: object, hosts: int = 0, slots: int = 1) -> Command:
        """`rb launch` on the first host, over all of them or the first few."""
        listed = self.folder / f"{name}.hosts"
        some = Hosts(self.hosts[: hosts or len(self.hosts)])
        command = [sys.executable, "-m", "rb.cli", "launch", "--hostfile", some.hostfile(listed, slots)]
        return self.hosts[0].run(*command, "--run", self.file, f"name={name}", *options)


def ranks(hosts: list[Host]) -> dict[int, psutil.Process]:
    """Ranks that run now, by number."""
    found = {}
    for host in hosts:
        for process in host.processes(RANK):
            with suppress(psutil.Error, KeyError, OSError):
                variables = process.environ()
                if heartbeat.VARIABLE in variables and AGENT not in " ".join(process.cmdline()):
                    found[int(variables["RANK"])] = process
    return found


def beat_of(rank: psutil.Process) -> heartbeat.Beat | None:
    with suppress(psutil.Error, OSError, KeyError):
        return heartbeat.read(Path(rank.environ()[heartbeat.VARIABLE]))
    return None


def wait_until(true: Callable[[], bool], job: Command, seconds: float = START_S) -> None:
    """Wait for something that happens while a job runs."""
    end = time.monotonic() + seconds
    while not true():
        assert job.poll() is None, f"ended early with {job.poll()}:\n{job.said()}"
        assert time.monotonic() < end, f"not in {seconds} s:\n{job.said()}"
        time.sleep(0.01)


def wait_for(hosts: list[Host], job: Command, number: int, phase: str, step: int = -1) -> dict[int, psutil.Process]:
    """Wait until all ranks run and one of them is in this phase, with so many steps made at least; the ranks."""
    found: dict[int, psutil.Process] = {}

    def there() -> bool:
        if len(found) < number or not all(process.is_running() for process in found.values()):
            time.sleep(LOOK_S)
            found.clear()
            found.update(ranks(hosts))
        beats = [beat_of(process) for process in found.values()]
        return len(found) == number and any(b is not None and b.phase == phase and b.step >= step for b in beats)

    wait_until(there, job)
    return found


def losses(run_dir: Path) -> dict[int, float]:
    """Loss of every step in the journal."""
    points = metric_points(run_dir / "journal.jsonl")
    return {point.step: point.value for point in points["train/point_cloud/loss_total"]}


def furthest(run_dir: Path, plain: Path) -> float:
    """The largest difference between the losses of a run and the plain one's, relative to the latter; of all steps."""
    one, other = losses(run_dir), losses(plain)
    assert one.keys() == other.keys(), (sorted(one), sorted(other))
    return max(abs(one[step] - other[step]) / abs(other[step]) for step in other)


def differing(run_dir: Path, plain: Path) -> list[str]:
    """Tensors of the final training state (parameters, AdamW moments, counts) that are not the plain run's bit for bit."""
    one, other = (checkpoint.load_state(checkpoint.require(folder)).tensors for folder in (run_dir, plain))
    kinds = {*one, *other}
    names = [(kind, name) for kind in kinds for name in {*one.get(kind, {}), *other.get(kind, {})}]
    return [
        f"{kind} of {name}"
        for kind, name in names
        if name not in one.get(kind, {}) or name not in other.get(kind, {}) or not torch.equal(one[kind][name], other[kind][name])
    ]  # fmt: skip
