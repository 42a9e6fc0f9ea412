"""Two, three and four hosts (network namespaces, a real sshd each) with one rank or two, by deepspeed through pdsh and by ssh: the losses of every
step are those of as many ranks on one host within 1e-5. A run that is stopped goes on over another number of hosts; one that loses a host for good goes
on without it, by itself (`--min-nodes`): its losses are those of an undisturbed run within 1e-5.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from rb.checkpoints import checkpoint
from rb.core.config import FoundationConfig
from rb.core.exit_codes import STOPPED
from rb.core.heartbeat import TRAINING
from tests.support.host_runs import MOST, START_S, Runs, furthest, wait_for
from tests.support.hosts import hosts
from tests.support.trials import Trials

CASES = [(2, 1, "pdsh"), (2, 1, "ssh"), (2, 2, "pdsh"), (3, 1, "pdsh"), (3, 1, "ssh"), (4, 1, "pdsh"), (4, 1, "ssh")]
CASES += [(3, 2, "pdsh"), (4, 2, "pdsh")]
STEPS, EARLY = 8, 2  # of a run; when it is disturbed
CHANGES = [(2, 4), (4, 3), (3, 2)]


@pytest.mark.timeout(0)
def test_hosts_train_as_one(foundation: FoundationConfig, tmp_path: Path, trials: Trials) -> None:
    cases = {f"{number} hosts of {slots} rank(s), {how}": (number, slots, how) for number, slots, how in CASES}
    with hosts(4, tmp_path / "hosts", own_name="127.0.1.1") as four:
        runs = Runs(tmp_path, foundation, four, STEPS)
        for name in trials.left(cases):
            number, slots, how = cases[name]
            with trials.trial(name) as figures, four.clean():
                run = f"{number}x{slots}{how}"
                runs.launch(run, "--launcher", how, hosts=number, slots=slots).finish(timeout=900)
                figures["largest relative difference of a loss"] = furthest(runs.path(run), runs.plain(number * slots))
                figures["processes left after 10 s"] = len(four.left_after(10))
                assert max(figures.values()) <= MOST


@pytest.mark.timeout(0)
def test_other_hosts_go_on(foundation: FoundationConfig, tmp_path: Path, trials: Trials) -> None:
    changes = {f"{before} hosts, then {after}": (before, after) for before, after in CHANGES}
    with hosts(4, tmp_path / "hosts") as four:
        runs = Runs(tmp_path, foundation, four, STEPS)
        for name in trials.left(changes):
            before, after = changes[name]
            with trials.trial(name) as figures, four.clean():
                run = runs.path(name := name.replace(" ", "-"))
                job = runs.launch(name, "--launcher", "ssh", "--no-sum", hosts=before)
                wait_for(four, job, before, TRAINING, EARLY)
                job.terminate()
                job.finish(STOPPED)
                assert EARLY <= checkpoint.require(run).step < STEPS
                runs.launch(name, "--launcher", "ssh", "--no-sum", hosts=after).finish(timeout=START_S)
                figures["largest relative difference of a loss"] = furthest(run, runs.plain(2))
                assert max(figures.values()) <= MOST
        for name in trials.left(["one of 3 hosts is lost for good"]):
            with trials.trial(name) as figures, four.clean():
                run = runs.path(name := name.replace(" ", "-"))
                restart = ("--launcher", "ssh", "--no-sum", "--restart", 2, "--min-nodes", 2)
                job = runs.launch(name, *restart, hosts=3)
                wait_for(four, job, 3, TRAINING, 5)  # a checkpoint is made every fourth step
                four[2].kill()
                assert "goes on without node3: 2 of 3 nodes" in job.finish(timeout=START_S)
                figures["largest relative difference of a loss"] = furthest(run, runs.plain(2))
                assert max(figures.values()) <= MOST
