"""A rank whose launcher has ended and that gets nowhere ends itself; one that gets on does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rb.core import heartbeat
from rb.core.exit_codes import HUNG
from rb.core.stopping import PARENT_VARIABLE

RANK = """
import sys, time
from rb.core import heartbeat, stopping
stopping.ORPHAN_S = 1.0
heartbeat.begin()
stop = stopping.StopRequest()
stop.patience_s = 1.0
stop.start_steps()
heartbeat.phase(heartbeat.TRAINING)
for _ in range(int(sys.argv[1])):
    heartbeat.beat()
    time.sleep(0.1)
print("hangs", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("watched", [True, False])
def test_a_rank_that_hangs_does_not_outlive_its_launcher_for_ever(tmp_path: Path, watched: bool) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    environment = os.environ | {PARENT_VARIABLE: str(ended.pid)}
    if watched:
        heartbeat.make(tmp_path / "rank0")
        environment[heartbeat.VARIABLE] = str(tmp_path / "rank0")
    # Its launcher has ended before it begins, which would end it in start-up: see the end only once it takes steps.
    late = RANK.replace(
        "stop = stopping", "gone, stopping.Parents.gone = stopping.Parents.gone, lambda _: False; stop = stopping"
    )
    late = late.replace("stop.start_steps()", "stop.start_steps(); stopping.Parents.gone = gone")
    steps = "20" if watched else "0"  # 2 s of steps: longer than it may be without progress
    command = [sys.executable, "-c", late, steps]
    rank = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert rank.returncode == HUNG, rank.stderr
    assert rank.stdout == "hangs\n"
    assert "no progress since the end of its launcher; this process ends with code 4" in rank.stderr
    assert 'File "<string>"' in rank.stderr  # where it was
