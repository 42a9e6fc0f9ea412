"""Plans of evaluations as a job array of a real Slurm (launch/evaluate.sbatch, one element per cell): requeued, killed, of a damaged checkpoint.

The final tables have the bytes of a job on this host that nobody disturbed.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from rb.core.config import FoundationConfig
from tests.support.evaluation_world import damage, tables, write_world
from tests.support.slurm_cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
SIZES = ("--gpus-per-node=0", "--cpus-per-task=8")
END_S = 1200
DAMAGED = (3, 4, 5)  # the cells of the second model


@pytest.fixture(scope="module")
def plan(foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("array"), foundation)


def on_this_host(plan: Path, out: Path) -> int:
    """Exit code of the whole plan here; what is missing is made."""
    command = [sys.executable, "-m", "rb.cli", "evaluate", "--plan", plan, "--out", out, "--no-mlflow"]
    return subprocess.run([str(word) for word in command], cwd=ROOT, check=False).returncode


def submit(cluster: Cluster, plan: Path, out: Path, cells: str) -> str:
    return cluster.submit(
        f"--array={cells}", f"--output={out}-%a.output", *SIZES, "launch/evaluate.sbatch", plan, out, "--no-mlflow"
    )


def elements(cluster: Cluster, number: str) -> dict[int, dict[str, str]]:
    """What Slurm says of each element of an array."""
    said = cluster.run("scontrol", "--oneliner", "show", "job", number)
    jobs = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in said.splitlines()]
    return {int(job["ArrayTaskId"]): job for job in jobs if job.get("ArrayTaskId", "").isdigit()}


def ended(cluster: Cluster, number: str, count: int) -> bool:
    found = elements(cluster, number)
    return len(found) == count and all(job["JobState"] in ("COMPLETED", "FAILED") for job in found.values())


def process_of(cluster: Cluster, cell: int) -> psutil.Process | None:
    """The Python process of an element."""
    for process in cluster.processes():
        with suppress(psutil.Error):
            words = process.cmdline()
            if "rb.cli" in words and words[words.index("--only") + 1] == str(cell):
                return process
    return None


def test_an_element_is_requeued_and_one_is_killed(cluster: Cluster, plan: Path) -> None:
    assert on_this_host(plan, plan.parent / "whole") == 0
    out = plan.parent / "array"
    number = submit(cluster, plan, out, "0-7")
    cluster.wait(lambda: process_of(cluster, 0) is not None, "element 0 runs", 300)
    cluster.run("scontrol", "requeue", f"{number}_0")
    cluster.wait(lambda: process_of(cluster, 2) is not None, "element 2 runs", 600)
    killed = process_of(cluster, 2)
    assert killed is not None
    killed.send_signal(signal.SIGKILL)
    cluster.wait(lambda: ended(cluster, number, 8), "all elements have ended", END_S)
    found = elements(cluster, number)
    assert {job["JobState"] for job in found.values()} == {"COMPLETED"}, found
    assert sorted(cell for cell, job in found.items() if job["Restarts"] != "0") == [0, 2]
    assert tables(out) == tables(plan.parent / "whole")


def test_elements_of_a_damaged_checkpoint_fail_alone(cluster: Cluster, plan: Path) -> None:
    damage(plan.parent / "other")
    assert on_this_host(plan, plan.parent / "whole_damaged") == 1
    out = plan.parent / "array_damaged"
    number = submit(cluster, plan, out, "0-7")
    cluster.wait(lambda: ended(cluster, number, 8), "all elements have ended", END_S)
    assert (
        tuple(cell for cell, job in sorted(elements(cluster, number).items()) if job["JobState"] == "FAILED") == DAMAGED
    )
    assert tables(out) == tables(plan.parent / "whole_damaged")
    states = [cell["state"] for cell in json.loads((out / "table.json").read_text())["cells"]]
    assert [cell for cell, state in enumerate(states) if state == "failed"] == list(DAMAGED)
