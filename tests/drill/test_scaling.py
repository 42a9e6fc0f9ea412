"""`rb bench scaling` over two hosts (network namespaces, a real sshd each): one rank, one host of two ranks and both hosts, by ssh and by pdsh. The hosts share
two cores, so the efficiencies say nothing of a cluster."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from rb.core.config import FoundationConfig
from tests.support.host_runs import Runs
from tests.support.hosts import hosts
from tests.support.trials import Trials


@pytest.mark.timeout(0)
def test_one_rank_one_host_two_hosts(foundation: FoundationConfig, tmp_path: Path, trials: Trials) -> None:
    with hosts(2, tmp_path / "hosts", own_name="127.0.1.1") as two:
        runs = Runs(tmp_path, foundation, two)
        listed = two.hostfile(tmp_path / "two.hosts", 2)
        for how in trials.left(["ssh", "pdsh"]):
            with trials.trial(how) as figures, two.clean():
                command = [sys.executable, "-m", "rb.cli", "bench", "scaling", "--run", runs.file, "--hostfile", listed]
                said = two[0].run(*command, "--launcher", how, "--steps", 10, "--json").finish(timeout=900)
                sizes = json.loads(said[said.index("{\n") : said.rindex("}") + 1])["sizes"]
                found = [(one["ranks"], one["nodes"], one["global_batch_size"]) for one in sizes]
                assert found == [(1, 1, 6), (2, 1, 12), (4, 2, 24)]
                assert min(one["samples_per_s"] for one in sizes) > 0
                figures["processes left after 10 s"] = len(two.left_after(10))
                assert figures["processes left after 10 s"] == 0
