"""Training under a real Slurm (two nodes, a rank on each, launch/slurm.sbatch): preempted, cancelled, at its time limit, on nodes that fail.

Every run goes on, where it should, and ends with the same bits in parameters and moments as one on a single host that nobody disturbed.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from rb.checkpoints import checkpoint
from rb.core.config import FoundationConfig
from rb.core.run_file import to_tree
from rb.core.run_layout import RUN_JOURNAL, RUN_LOG
from rb.tracking.closing import last_status
from rb.tracking.journal import metric_points
from rb.training.run_end import read_end
from tests.support import small_data, tiny
from tests.support.slurm_cluster import Cluster
from tests.support.trials import Figures

ROOT = Path(__file__).resolve().parents[2]
EVERY = 25  # steps between two checkpoints
SHORT, LONG = 300, 1200  # steps of a run; a time limit is looked at every 30 s, and the long run must last for more
END_S = 1800  # for what is left of a run, on a machine that does other work too
SIZES = ("--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1")


class Runs:
    """One run file; its run on this host alone, and by jobs."""

    def __init__(self, folder: Path, foundation: FoundationConfig) -> None:
        self.folder, self.file = folder, folder / "run.yaml"
        small_data.write_set(folder / "clouds", "point_cloud", 7)
        train = {"global_batch_size": 2, "micro_batch_size": 1, "checkpoint_every": EVERY, "log_every": 1}
        tree = {
            "name": "run",
            "output_dir": str(folder),
            "model": to_tree(tiny.model_config(foundation)) | {"train_modalities": ["point_cloud"]},
            "data": {"train": {"point_cloud": [{"manifest": str(folder / "clouds")}]}, "num_workers": 1},
            "train": train | {"num_threads": 1, "ds_config": "ds_configs/zero2_cpu.json"},
        }
        self.file.write_text(yaml.safe_dump(tree))

    def undisturbed(self, steps: int) -> Path:
        """The run folder of a run on this host."""
        run_dir = self.folder / f"undisturbed{steps}"
        if not run_dir.exists():
            command = [sys.executable, "-m", "rb.cli", "train", "--ranks", "2", "--run", str(self.file)]
            settings = [f"name={run_dir.name}", f"train.max_steps={steps}", "tracking.mlflow=false"]
            subprocess.run([*command, *settings], cwd=ROOT, check=True)
        return run_dir


@pytest.fixture(scope="module")
def runs(foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("slurm"), foundation)


class Job:
    """A job that trains; ``submit`` again to go on with its run."""

    def __init__(self, cluster: Cluster, runs: Runs, name: str, steps: int = SHORT, mlflow: bool = False) -> None:
        self.cluster, self.runs, self.steps = cluster, runs, steps
        self.run_dir, self.output = runs.folder / name, runs.folder / f"{name}.output"
        settings = [f"name={name}", f"train.max_steps={steps}", f"tracking.mlflow={str(mlflow).lower()}"]
        self.words = [f"--output={self.output}", *SIZES, "launch/slurm.sbatch", runs.file, *settings]
        self.number = ""

    def submit(self, *options: str) -> None:
        self.number = self.cluster.submit(*options, *self.words)

    def saved(self, more: int = 0) -> None:
        """Wait for a checkpoint, and for ``more`` that follow."""
        self.wait(lambda: self._log().count(": saved ") > more, "a checkpoint")

    def wait(self, done: Callable[[], bool], what: str, within_s: float = 300) -> None:
        try:
            self.cluster.wait(done, what, within_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n== job\n{self.said()}") from None

    def ends(self, state: str) -> dict[str, str]:
        """Wait for the job's end; what Slurm says of it."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait(lambda: self.state() in over, state, END_S)
        found = self.cluster.job(self.number)
        assert found["JobState"] == state, f"{found}\n{self.said()}"
        return found

    def state(self) -> str:
        return self.cluster.job(self.number)["JobState"]

    def steps_made(self) -> int:
        """By the newest checkpoint."""
        return checkpoint.require(self.run_dir).step

    def said(self) -> str:
        return self.output.read_text()[-6000:] if self.output.exists() else ""

    def rank(self, number: int) -> psutil.Process:
        """The process of a rank."""
        for process in self.cluster.processes():
            with suppress(psutil.Error):
                if process.environ().get("RANK") == str(number) and "rb.train" in process.cmdline():
                    return process
        raise AssertionError(f"no rank {number}\n{self.said()}")

    def goes_on(self) -> None:
        """Slurm has queued it again: it starts, finishes, and has the undisturbed run's bits."""
        asked = 0.0

        def requeued() -> bool:
            nonlocal asked
            asked = time.time()
            return self.state() == "PENDING"

        self.wait(requeued, "requeued")
        # Slurm may have started it again since; the system gives start times to a second.
        assert not [process for process in self.cluster.processes() if process.create_time() < asked - 2]
        assert self.ends("COMPLETED")["Restarts"] == "1"
        self.is_as_undisturbed()

    def is_as_undisturbed(self) -> None:
        """Parameters and moments have the same bits; the run has ended well; nothing is left on the nodes."""
        undisturbed = self.runs.undisturbed(self.steps)
        one, other = (checkpoint.load_state(checkpoint.require(run)).tensors for run in (undisturbed, self.run_dir))
        assert one.keys() == other.keys()
        for kind, tensors in one.items():
            assert tensors.keys() == other[kind].keys()
            assert all(torch.equal(tensor, other[kind][name]) for name, tensor in tensors.items()), kind
        end = read_end(self.run_dir)
        assert end is not None
        assert (end.code, end.step) == (0, self.steps)
        assert last_status(self.run_dir) == "FINISHED"
        self.nothing_left()

    def nothing_left(self) -> None:
        self.cluster.wait(lambda: not self.cluster.processes(), "nothing runs on the nodes", 30)

    def _log(self) -> str:
        log = self.run_dir / RUN_LOG
        return log.read_text() if log.exists() else ""


def test_two_nodes_train(cluster: Cluster, runs: Runs, figures: Figures) -> None:
    job = Job(cluster, runs, "two_nodes")
    job.submit()
    assert job.ends("COMPLETED")["Restarts"] == "0"
    one, two = (metric_points(run / RUN_JOURNAL) for run in (runs.undisturbed(SHORT), job.run_dir))
    losses = [name for name in one if "loss" in name]
    assert losses
    figures["loss_difference"] = max(
        abs(a.value - b.value) for name in losses for a, b in zip(one[name], two[name], strict=True)
    )
    assert figures["loss_difference"] <= 1e-5
    job.is_as_undisturbed()


def test_preempted(cluster: Cluster, runs: Runs, figures: Figures) -> None:
    """A job of a higher partition needs the nodes: SIGTERM, which Slurm sends to agents and ranks but not to the script, then GraceTime."""
    job = Job(cluster, runs, "preempted")
    job.submit()
    job.saved()
    began = time.monotonic()
    other = cluster.submit("--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 3")
    job.wait(lambda: job.state() == "PENDING", "requeued")
    figures["nodes_free_s"] = round(time.monotonic() - began, 1)
    assert EVERY < job.steps_made() < SHORT
    assert "stopped by" in (job.run_dir / RUN_LOG).read_text()
    cluster.wait_for(other, "COMPLETED")
    job.goes_on()


@pytest.mark.parametrize("module", ["rb.launching.agent", "rb.train"])
def test_preempted_in_start_up(cluster: Cluster, runs: Runs, module: str) -> None:
    """Agents, or ranks, have just been started: there is nothing to save, and the job is queued again."""
    job = Job(cluster, runs, f"preempted_{module.rpartition('.')[2]}")
    job.submit()
    job.wait(lambda: any(module in words for words in cluster.command_lines()), module)
    other = cluster.submit("--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 3")
    job.wait(lambda: job.state() != "RUNNING", "ended")
    cluster.wait_for(other, "COMPLETED")
    job.goes_on()


def test_cancelled(cluster: Cluster, runs: Runs, figures: Figures) -> None:
    job = Job(cluster, runs, "cancelled", mlflow=True)
    job.submit()
    job.saved()
    began = time.monotonic()
    cluster.run("scancel", job.number)
    found = job.ends("CANCELLED")
    job.nothing_left()
    figures["nothing_left_s"] = round(time.monotonic() - began, 1)
    assert (found["ExitCode"], found["Restarts"]) == ("75:0", "0")
    assert EVERY < job.steps_made() < SHORT
    assert status_in_mlflow(runs.folder, "cancelled") == "KILLED"
    job.submit()
    job.ends("COMPLETED")
    job.is_as_undisturbed()
    assert status_in_mlflow(runs.folder, "cancelled") == "FINISHED"


def test_time_limit(cluster: Cluster, runs: Runs) -> None:
    """`--signal` before the limit reaches the script alone, which passes it on. The limit is set once training has begun."""
    job = Job(cluster, runs, "time_limit", LONG)
    job.submit("--time=300", "--signal=B:TERM@3600")
    job.saved()
    cluster.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=31")
    job.wait(lambda: job.state() == "PENDING", "requeued")
    assert EVERY < job.steps_made() < LONG
    cluster.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=300")
    job.goes_on()


def test_a_rank_is_killed(cluster: Cluster, runs: Runs) -> None:
    """`rb launch` starts again within the same job."""
    job = Job(cluster, runs, "rank_killed")
    job.submit()
    job.saved()
    job.rank(1).send_signal(signal.SIGKILL)
    assert job.ends("COMPLETED")["Restarts"] == "0"
    assert "SIGKILL" in job.said()
    job.is_as_undisturbed()


@pytest.mark.parametrize("number", [0, 1])
def test_a_node_loses_power(cluster: Cluster, runs: Runs, number: int) -> None:
    """Node 0 has the script and the controller, node 1 an agent and a rank."""
    job, node = Job(cluster, runs, f"power{number}"), cluster.nodes[number]
    job.submit()
    job.saved()
    node.kill()
    job.wait(lambda: "down*" in cluster.node_states(), "Slurm sees it")
    cluster.switch_on(node)
    job.goes_on()


def test_all_of_a_node_is_killed(cluster: Cluster, runs: Runs) -> None:
    """Slurm's daemon and all that the job has there, at once."""
    job, node = Job(cluster, runs, "killed"), cluster.nodes[1]
    job.submit()
    job.saved()
    for process in node.processes():
        process.kill()
    job.wait(lambda: "down*" in cluster.node_states(), "Slurm sees it")
    node.run("slurmd").finish()
    job.goes_on()


def test_a_node_is_set_down(cluster: Cluster, runs: Runs) -> None:
    """Slurm requeues the job and tells the other nodes only; the agent of this one is told by the controller."""
    job, node = Job(cluster, runs, "set_down"), cluster.nodes[1]
    job.submit()
    job.saved()
    cluster.run("scontrol", "update", f"NodeName={node.name}", "State=DOWN", "Reason=trial")
    job.wait(lambda: job.state() == "PENDING", "requeued")
    job.nothing_left()
    cluster.wait(lambda: cluster.node_states() == {"idle"}, "the node is back (ReturnToService)")
    job.goes_on()


def status_in_mlflow(folder: Path, name: str) -> str:
    """Of the run with this name, in the store beside the run folders."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments, f"attributes.run_name = '{name}'")
    return str(run.info.status)
