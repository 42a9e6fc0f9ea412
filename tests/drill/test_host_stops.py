"""SIGTERM and SIGINT during a training on two hosts, to the controller, a process of the launcher, one rank, all ranks or an agent, on any host, in
start-up, training, validation and saving. The state is saved and everybody has left within 30 s, the code is 75, and nothing is left on any host
10 s later. In start-up there may be nothing to save yet.
"""

from __future__ import annotations

import random
import re
import signal
import time
from pathlib import Path

import psutil
import pytest

from rb.checkpoints import checkpoint
from rb.core.config import FoundationConfig
from rb.core.exit_codes import STOPPED
from rb.core.heartbeat import SAVING, START, TRAINING, VALIDATION
from tests.support.host_runs import Runs, losses, ranks, wait_for
from tests.support.hosts import Command, Hosts, hosts
from tests.support.trials import Trials

SEED, WITHIN_S = 20261128, 30
WHO = ("controller", "launcher", "one rank", "all ranks", "agent")
PHASES = (START, TRAINING, VALIDATION, SAVING)
SIGNALS = (signal.SIGTERM, signal.SIGINT)


@pytest.mark.timeout(0)
def test_stops(foundation: FoundationConfig, tmp_path: Path, trials: Trials) -> None:
    cases = {f"{s.name} to {who} in {phase}": (s, who, phase) for s in SIGNALS for who in WHO for phase in PHASES}
    with hosts(2, tmp_path / "hosts") as two:
        runs = Runs(tmp_path, foundation, two, steps=100_000, batch=8)
        for name in trials.left(cases):
            number, who, phase = cases[name]
            draw, run = random.Random(f"{SEED} {name}"), name.replace(" ", "-")
            with trials.trial(name) as figures, two.clean():
                often = ["validation.every=3", "validation.num_examples=2", "train.checkpoint_every=2"]
                how = draw.choice(("pdsh", "ssh"))
                job = runs.launch(run, "--launcher", how, "--no-sum", *(often if phase in (VALIDATION, SAVING) else []))
                wait_for(two, job, 2, phase)
                time.sleep(draw.uniform(0, 3.0 if phase == START else 0.2 if phase == TRAINING else 0.0))
                began = time.monotonic()
                for process in chosen(who, number, two, job, draw):
                    process.send_signal(number)
                code = job.wait(180)
                figures["seconds until the command ends"] = round(time.monotonic() - began, 1)
                left = two.left_after(10)
                figures["processes left after 10 s"] = len(left)
                assert code == STOPPED, job.said()
                assert not left, left
                assert figures["seconds until the command ends"] <= WITHIN_S
                if phase != START:
                    assert checkpoint.require(runs.path(run)).step == max(losses(runs.path(run)))


def chosen(who: str, number: signal.Signals, two: Hosts, job: Command, draw: random.Random) -> list[psutil.Process]:
    """The processes that a trial signals."""
    if who == "controller":
        return [job.process()]
    if who.endswith("ranks"):
        return list(ranks(two).values())
    if who == "one rank":
        return [draw.choice(list(ranks(two).values()))]
    if who == "agent":
        found = two.processes("-m rb.launching.agent")
        return [draw.choice([p for p in found if p.name().startswith("python") and "launcher." not in p.cmdline()[3]])]
    found = [
        p
        for p in two.processes()
        if p.name() in ("ssh", "pdsh", "pdsh.bin") or "deepspeed.launcher." in " ".join(p.cmdline())
    ]
    return [draw.choice([p for p in found if p.name() not in ("bash", "sshd") and not deaf(p, number)])]


def deaf(process: psutil.Process, number: signal.Signals) -> bool:
    """Whether a signal would never reach it: pdsh blocks SIGINT in every ssh that it starts. It blocks it in itself too, but waits for it."""
    (blocked,) = re.findall(r"SigBlk:\s+(\w+)", Path(f"/proc/{process.pid}/status").read_text())
    return process.name() == "ssh" and bool(int(blocked, 16) >> (number - 1) & 1)
