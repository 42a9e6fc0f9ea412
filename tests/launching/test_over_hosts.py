"""Two hosts with a real sshd train together: as one host does, also after a hang. `tests/drill/test_host_*.py` try it at length, `test_kills.py` kills."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from rb.core.config import FoundationConfig
from rb.core.exit_codes import FINISHED
from rb.core.heartbeat import BEGUN, TRAINING
from tests.support.host_runs import MOST, START_S, Runs, differing, furthest, ranks, wait_for, wait_until
from tests.support.hosts import hosts


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.dist
def test_two_hosts_hang_start_again_and_finish_as_one(foundation: FoundationConfig, tmp_path: Path) -> None:
    with hosts(2, tmp_path / "hosts", own_name="127.0.1.1") as two:
        runs = Runs(
            tmp_path, foundation, two, steps=12, batch=12
        )  # ten steps are left when the hang begins: over a second
        plain, run_dir = runs.plain(2), runs.path("run")
        job = runs.launch("run", "--launcher", "ssh", "--restart", 1, "limits.training_s=5")
        # The rank of the second host is stopped: the job ends everywhere, the report names it, and the job starts again by itself.
        wait_for(two, job, 2, TRAINING, 2)[1].send_signal(signal.SIGSTOP)
        wait_until(lambda: "restart 1 of 1" in job.said(), job)
        assert "hang: rank 1 on node2" in job.said()
        (report,) = (run_dir / "hangs").glob("*/report.json")
        tree = json.loads(report.read_text())
        verdict, waiting = tree["verdict"], tree["nodes"][0]["stacks"]["0"]
        assert (verdict["kind"], verdict["phase"], verdict["culprits"][0]["host"]) == ("hang", TRAINING, "node2")
        # What rank 0 says of itself: its stacks, and by torch's own record the collective that it waits in.
        assert " in take_steps" in waiting
        newest = waiting.split("newest collectives:\n")[1].split(f"\n{BEGUN}")[0].splitlines()
        assert re.fullmatch(r"gloo:\S+ of group .*: (scheduled|started), begun \d+\.\d s ago", newest[-1]), newest
        job.finish(FINISHED, START_S)
        assert not two.left_after(10)
        assert not ranks(two)
        assert furthest(run_dir, plain) <= MOST
        assert differing(run_dir, plain) == []
