"""launch/slurm.sbatch in a real Slurm: what it does when `rb launch`, for which a small script stands here, ends with one code or another.

Training under Slurm, preempted, cancelled, at its limit, on nodes that fail: tests/drill/test_slurm.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.slurm_cluster import Cluster, slurm_cluster

pytestmark = pytest.mark.dist
# As `rb launch`: works until SIGTERM, then "saves" and leaves with 75. Started again it finishes. CODE is another end.
STAND_IN = """#!/usr/bin/env bash
echo "started $SLURM_JOB_NUM_NODES $SLURM_GPUS_ON_NODE: $*"
[[ -n ${CODE:-} ]] && exit $CODE
[[ -n ${SLURM_RESTART_COUNT:-} ]] && exit 0
trap 'echo saving; sleep 0.5; echo saved; exit 75' TERM
while :; do sleep 0.1; done
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with slurm_cluster(nodes=2) as made:
        yield made


class Submitted:
    """A job of the script, with the stand-in."""

    def __init__(self, cluster: Cluster, folder: Path, *options: str, run: str = "opt_2.7b") -> None:
        self.cluster, self.output = cluster, folder / "output"
        python = folder / "python"
        python.write_text(STAND_IN)
        python.chmod(0o755)
        variables = ",".join(["--export=ALL", f"PYTHON={python}", *(o for o in options if not o.startswith("-"))])
        sizes = ["--cpus-per-task=1", *(o for o in options if o.startswith("-"))]
        self.number = cluster.submit(f"--output={self.output}", variables, *sizes, "launch/slurm.sbatch", run, "a.b=1")

    def says(self, words: str) -> None:
        self.cluster.wait(lambda: self.output.exists() and words in self.output.read_text(), words)


def test_asked_to_stop(cluster: Cluster, tmp_path: Path) -> None:
    """What Slurm sends five minutes before the limit goes to the script alone: it waits for the save, and the job queues itself again."""
    job = Submitted(cluster, tmp_path, "--nodes=2", "--gpus-per-node=3", run=str(tmp_path))
    job.says("started")
    cluster.run("scancel", "--batch", "--signal=TERM", job.number)
    job.says("saved")
    cluster.go_on(job.number)
    ended = cluster.wait_for(job.number, "COMPLETED")
    started = f"started 2 3: -m rb.cli launch --slurm --restart 3 --resume {tmp_path} a.b=1"
    said = [line for line in job.output.read_text().splitlines() if line.startswith("sta") or line.startswith("sav")]
    assert said == [started, "saving", "saved", started]
    assert ended["Restarts"] == "1"
    assert ended["ExitCode"] == "0:0"


def test_cancelled(cluster: Cluster, tmp_path: Path) -> None:
    """It saves, and stays cancelled: `scontrol requeue` would bring back a job that its user has cancelled."""
    job = Submitted(cluster, tmp_path, "--gpus-per-node=0")
    job.says("started 1 : -m rb.cli launch --slurm --restart 3 --run opt_2.7b a.b=1")
    cluster.run("scancel", job.number)
    ended = cluster.wait_for(job.number, "CANCELLED", "PENDING")
    assert (ended["JobState"], ended["Restarts"], ended["ExitCode"]) == ("CANCELLED", "0", "75:0")
    assert "saved" in job.output.read_text()


@pytest.mark.parametrize(("code", "state"), [("0", "COMPLETED"), ("3", "FAILED"), ("5", "PENDING")])
def test_ended(cluster: Cluster, tmp_path: Path, code: str, state: str) -> None:
    """A finished run, and one that would fail again, are not queued again; one that lost a node is."""
    job = Submitted(cluster, tmp_path, "--gpus-per-node=0", f"CODE={code}")
    job.says("started")
    ended = cluster.wait_for(job.number, "COMPLETED", "FAILED", "PENDING")
    if state == "PENDING":
        cluster.run("scancel", job.number)
        assert (ended["JobState"], ended["Restarts"]) == ("PENDING", "1")
    else:
        assert (ended["JobState"], ended["Restarts"], ended["ExitCode"]) == (state, "0", f"{code}:0")
