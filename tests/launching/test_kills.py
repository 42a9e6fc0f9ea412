"""One training over two nodes is killed three times: a rank, an agent, the controller, whose command is then given again. It starts again by itself
and ends as the run that nobody disturbed, bit for bit. Fifty kills over real hosts: `make drill PART=host_kills`.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from rb.core import heartbeat
from rb.core.config import FoundationConfig
from rb.core.heartbeat import TRAINING, Beat
from tests.support import forked_launch, processes
from tests.support.host_runs import Runs, differing
from tests.support.hosts import Hosts
from tests.support.processes import Started

STEPS = 24
LIMIT_S = 240


@pytest.mark.slow
@pytest.mark.dist
def test_a_run_that_is_killed_three_times_ends_as_if_nothing_had_been(
    foundation: FoundationConfig, tmp_path: Path
) -> None:
    runs = Runs(tmp_path, foundation, Hosts(), STEPS)
    small = ["train.global_batch_size=2", "train.contrastive_batch_size=2"]
    (tmp_path / "tmp").mkdir()
    environment = {"TMPDIR": str(tmp_path / "tmp"), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}

    def launch() -> Started:
        return processes.start_function(
            forked_launch.control,
            runs.file,
            [*small, "name=run", "limits.training_s=60", "limits.node_s=30"],
            3,
            **environment,
        )

    def children(job: Started) -> list[psutil.Process]:
        """The agents, as they were forked."""
        return sorted(psutil.Process(job.pid).children(), key=lambda process: process.create_time())

    def wait(job: Started, true: Callable[[], bool]) -> None:
        end = time.monotonic() + LIMIT_S
        while not true():
            assert job.poll() is None, job.output()
            assert time.monotonic() < end, job.output()
            time.sleep(0.01)

    def reach(job: Started, step: int) -> None:
        wait(job, lambda: any(beat.phase == TRAINING and beat.step >= step for beat in beats(tmp_path / "tmp")))
        time.sleep(draw.uniform(0, 0.05))

    seed = time.time_ns()
    draw = random.Random(seed)
    job = launch()
    reach(job, draw.randint(1, 5))
    agent = draw.choice(children(job))
    next(child for child in agent.children() if "rb.launching.guard" not in child.cmdline()).kill()
    wait(job, lambda: "restart 1 of 3" in job.output())

    reach(job, draw.randint(9, 12))
    draw.choice(children(job)).kill()
    wait(job, lambda: "restart 2 of 3" in job.output())

    reach(job, draw.randint(16, 20))
    everyone = psutil.Process(job.pid).children(recursive=True)
    os.kill(job.pid, signal.SIGKILL)
    _, left = psutil.wait_procs(everyone, timeout=LIMIT_S)
    assert not left

    processes.finish(launch(), timeout=LIMIT_S)
    plain = tmp_path / "runs" / "plain"
    processes.finish(*processes.start_ranks(2, "rb.train", "--run", runs.file, *small, "name=plain"))
    assert differing(runs.path("run"), plain) == [], seed


def beats(folder: Path) -> list[Beat]:
    """The newest of all ranks that have one now."""
    found = []
    for path in folder.glob("rb-ranks-*/*/rank?"):
        try:
            found.append(heartbeat.read(path))
        except OSError:  # it has just ended
            continue
    return [beat for beat in found if beat is not None]
