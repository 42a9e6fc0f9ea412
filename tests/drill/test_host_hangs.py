"""On two hosts a rank is stopped (SIGSTOP), a cable is pulled, a rank loops for ever; ten times each, at random steps. Limits are 10 s for training
and 8 s for a node. The job ends within 30 s with a code that is not 0, the rank or host and the phase are named, stacks of the answering ranks are on
disk, and no process is left on any host.
"""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest

from rb.core.config import FoundationConfig
from rb.core.exit_codes import HUNG, NODE_LOST
from rb.core.heartbeat import TRAINING
from tests.support.host_runs import Runs, wait_for
from tests.support.hosts import hosts
from tests.support.trials import Trials

SEED, TIMES, FOUND_S = 20261128, 10, 30
KINDS = ("stopped rank", "cable pulled", "endless loop")
# Stands for a fault in Python code that never returns: on SIGUSR2, in a rank, by Python's own hook for a site.
LOOP = """
import os, signal
if "RB_HEARTBEAT" in os.environ:
    def loop(*_):
        while True:
            pass
    signal.signal(signal.SIGUSR2, loop)
"""


@pytest.mark.timeout(0)
def test_hangs(foundation: FoundationConfig, tmp_path: Path, trials: Trials) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(LOOP)
    with hosts(2, tmp_path / "hosts") as two:
        for host in two:
            host.environment["PYTHONPATH"] += f":{tmp_path / 'site'}"
            host.reload()
        runs = Runs(tmp_path, foundation, two, steps=100_000, batch=8)
        for name in trials.left(f"{kind} {number}" for number in range(TIMES) for kind in KINDS):
            draw, kind = random.Random(f"{SEED} {name}"), name.rpartition(" ")[0]
            with trials.trial(name) as figures, two.clean():
                run = name.replace(" ", "-")
                job = runs.launch(
                    run, "--launcher", "ssh", "--no-sum", "limits.training_s=10", "train.checkpoint_every=1000"
                )
                ranks = wait_for(two, job, 2, TRAINING, draw.randint(1, 20))
                rank = draw.randint(0, 1)
                time.sleep(draw.uniform(0, 0.5))
                began = time.monotonic()
                if kind == "cable pulled":
                    two[1].link(False)
                else:
                    ranks[rank].send_signal(signal.SIGSTOP if kind == "stopped rank" else signal.SIGUSR2)
                code = job.wait(120)
                figures["seconds until the command ends"] = round(time.monotonic() - began, 1)
                left = two.left_after(max(0.0, FOUND_S - (time.monotonic() - began)))
                figures["seconds until nothing is left"] = round(time.monotonic() - began, 1)
                if kind == "cable pulled":  # the sshd of a host that is cut off learns of it when the cable is back
                    left = [words for words in left if not words.startswith("sshd:")]
                said = job.said()
                assert code == (NODE_LOST if kind == "cable pulled" else HUNG), said
                assert figures["seconds until the command ends"] <= FOUND_S
                assert not left, left
                (report,) = (runs.path(run) / "hangs").glob("*/report.json")
                tree = json.loads(report.read_text())
                (culprit,) = tree["verdict"]["culprits"]
                assert tree["verdict"]["phase"] == TRAINING
                if kind == "cable pulled":
                    assert culprit["host"] == "node2"
                else:
                    assert (culprit["host"], culprit["rank"]) == (f"node{rank + 1}", rank), said
                stacks = " ".join(text for node in tree["nodes"] for text in node["stacks"].values())
                stacks += " ".join(file.read_text() for file in report.parent.glob("*stacks*"))
                assert "File " in stacks
                if kind == "endless loop":
                    assert " in loop" in stacks
