"""Ranks whose supervisor is killed: those that can leave do so themselves, the guard ends those that hang."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from rb.launching import guard

ROOT = Path(__file__).parents[2]
SUPERVISOR = """
import sys, time
from rb.launching import guard
from rb.launching.node import Assignment, Node
node = Node(0, "here")
node.start(Assignment("tests.support.light_rank", (sys.argv[1], "1=freeze"), 2, 0, 2, "127.0.0.1", 1, {"DS_ACCELERATOR": "cpu"}))
while not node.poll().ranks[1].stopped:
    time.sleep(0.02)
print(*[rank.pid for rank in node.poll().ranks], node._guard.pid, node._folder, flush=True)
time.sleep(300)
"""


@pytest.mark.slow
def test_a_frozen_rank_does_not_outlive_its_supervisor(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SUPERVISOR.replace("import sys, time", "import sys, time"), str(tmp_path)]
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        *pids, folder = supervisor.stdout.readline().split()
        supervisor.kill()
    processes = [psutil.Process(int(pid)) for pid in pids if psutil.pid_exists(int(pid))]
    _, left = psutil.wait_procs(processes, timeout=guard.NO_PROGRESS_S + 60)
    assert not left
    assert not Path(folder).exists()
