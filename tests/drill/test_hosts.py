"""Two, three and four hosts (network namespaces, a real sshd each) with one rank or two, by deepspeed through pdsh and by ssh: the losses of every
step are those of as many ranks on one host within 1e-5, and so is the final state.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from rb.core.config import FoundationConfig
from tests.support.host_runs import MOST, Runs, furthest
from tests.support.hosts import hosts
from tests.support.trials import Trials

CASES = [(2, 1, "pdsh"), (2, 1, "ssh"), (2, 2, "pdsh"), (3, 1, "pdsh"), (3, 1, "ssh"), (4, 1, "pdsh"), (4, 1, "ssh")]
CASES += [(3, 2, "pdsh"), (4, 2, "pdsh")]


@pytest.mark.timeout(0)
def test_hosts_train_as_one(foundation: FoundationConfig, tmp_path: Path, trials: Trials) -> None:
    cases = {f"{number} hosts of {slots} rank(s), {how}": (number, slots, how) for number, slots, how in CASES}
    with hosts(4, tmp_path / "hosts", own_name="127.0.1.1") as four:
        runs = Runs(tmp_path, foundation, four, steps=8)
        for name in trials.left(cases):
            number, slots, how = cases[name]
            with trials.trial(name) as figures, four.clean():
                run = f"{number}x{slots}{how}"
                runs.launch(run, "--launcher", how, hosts=number, slots=slots).finish(timeout=900)
                figures["largest relative difference of a loss"] = furthest(runs.path(run), runs.plain(number * slots))
                figures["processes left after 10 s"] = len(four.left_after(10))
                assert max(figures.values()) <= MOST
