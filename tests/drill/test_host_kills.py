"""SIGKILL at random moments of a training on two hosts, 50 trials: a rank, an agent, a process of a launcher (deepspeed's runner and launcher, pdsh, ssh),
the whole second host, or the controller, whose command is then given again. The job starts again by itself, and its final parameters, AdamW moments
and counts are those of the undisturbed run on one host, bit for bit. What each trial draws follows from the seed and its name.
"""

from __future__ import annotations

import random
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from rb.core.config import FoundationConfig
from rb.core.exit_codes import FINISHED
from rb.core.heartbeat import TRAINING
from tests.support.host_runs import START_S, Runs, differing, losses, ranks, wait_for, wait_until
from tests.support.hosts import Host, Hosts, hosts
from tests.support.trials import Trials

SEED, TRIALS = 20261128, 50
KINDS = ("rank", "agent", "launcher", "host", "controller")
OF_LAUNCHERS = ("deepspeed.launcher.runner", "deepspeed.launcher.launch", "pdsh ", "ssh ", "sshd: root")


@pytest.mark.timeout(0)
def test_kills(foundation: FoundationConfig, tmp_path: Path, trials: Trials) -> None:
    with hosts(2, tmp_path / "hosts") as two:
        runs = Runs(tmp_path, foundation, two, batch=8)
        for name in trials.left(f"{KINDS[n % len(KINDS)]} {n // len(KINDS)}" for n in range(TRIALS)):
            draw, kind = random.Random(f"{SEED} {name}"), name.split()[0]
            with trials.trial(name) as figures, two.clean():
                one_kill(runs, two, name.replace(" ", "-"), kind, draw)
                found = differing(runs.path(name.replace(" ", "-")), runs.plain(2))
                figures["tensors that differ"] = len(found)
                assert not found, found


def one_kill(runs: Runs, two: Hosts, run: str, kind: str, draw: random.Random) -> None:
    """One training with one kill, to its end."""
    how = ("--launcher", draw.choice(("pdsh", "ssh")), "--no-sum", "--restart", 3, "limits.training_s=20")
    job = runs.launch(run, *how)
    if draw.random() < 0.25:  # while ranks start
        wait_until(lambda: bool(ranks(two)), job)
        time.sleep(draw.uniform(0, 15))
    else:
        wait_for(two, job, 2, TRAINING, draw.randint(0, 13))
        time.sleep(draw.uniform(0, 0.3))
    if kind == "host":
        two[1].kill()
        two[1].start()
    elif kind == "controller":
        job.kill()
        job.wait(60)
        left = two.left_after(120)
        assert not left, left
        job = runs.launch(run, *how)
    else:
        kill_one(two, kind, draw)
    job.finish(FINISHED, timeout=START_S)
    left = two.left_after(10)
    assert not left, left
    assert max(losses(runs.path(run))) == runs.steps


def kill_one(two: list[Host], kind: str, draw: random.Random) -> None:
    """SIGKILL to a process of a kind, on any host."""
    if kind == "rank":
        found = list(ranks(two).values())
    elif kind == "agent":
        found = [p for host in two for p in host.processes("-m rb.launching.agent") if p.name().startswith("python")]
        found = [p for p in found if "launcher" not in " ".join(p.cmdline())]
    else:
        found = [p for host in two for p in host.processes() if " ".join(p.cmdline()).startswith(OF_LAUNCHERS)]
        found += [p for host in two for p in host.processes("deepspeed.launcher.") if p.name().startswith("python")]
    with suppress(psutil.NoSuchProcess):
        draw.choice(found).kill()
