"""A rank without torch, for tests of supervisors: beats as a training does, and misbehaves as it is told.

usage: python -m tests.support.light_rank FOLDER [RANK=FAULT ...]     FAULT: exit:CODE, kill, freeze (SIGSTOP), loop, deaf (to stops)
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from rb.core import heartbeat
from rb.core.exit_codes import FINISHED, STOPPED
from rb.core.stopping import StopRequest
from rb.training.run_end import write_end

STEPS, STEP_S = 100, 0.02
FAULT_AT = 10  # step


def main(folder: Path, faults: dict[str, str]) -> int:
    """FINISHED after all steps, STOPPED once it is asked."""
    heartbeat.begin()
    stop, rank = StopRequest(), os.environ["RANK"]
    fault = faults.get(rank, "")
    stop.start_steps()
    heartbeat.phase(heartbeat.TRAINING)
    for step in range(STEPS):
        heartbeat.step(step)
        heartbeat.samples([f"sample/{rank}/{step}"])
        if step == FAULT_AT and fault:
            _misbehave(fault)
        with heartbeat.waiting("all_reduce"):
            asked = _all_reduce(folder, rank, step, bool(stop.reason) and fault != "deaf")
        if asked:
            return _leave(folder, rank, STOPPED, step)
        time.sleep(STEP_S)
    return _leave(folder, rank, FINISHED, STEPS)


def _leave(folder: Path, rank: str, code: int, step: int) -> int:
    if rank == "0":
        write_end(folder, code, step, STEPS)
    return code


def _all_reduce(folder: Path, rank: str, step: int, asked: bool) -> bool:
    """Whether any rank was asked, once all have come to this step."""
    ranks = range(int(os.environ["WORLD_SIZE"]))
    mine = folder / f"{step}-{rank}"
    mine.with_suffix(".tmp").write_text(str(int(asked)))
    mine.with_suffix(".tmp").rename(mine)
    files = [folder / f"{step}-{other}" for other in ranks]
    while not all(file.exists() for file in files):
        time.sleep(0.005)
    return any(file.read_text() == "1" for file in files)


def _misbehave(fault: str) -> None:
    kind, _, code = fault.partition(":")
    if kind == "exit":
        os._exit(int(code))
    if kind in ("kill", "freeze"):
        os.kill(os.getpid(), signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
    while kind == "loop":
        pass


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), dict(word.split("=") for word in sys.argv[2:])))
