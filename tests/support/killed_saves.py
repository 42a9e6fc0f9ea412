"""Folders of checkpoints in several states, one more checkpoint that is killed while it is written, and what must hold afterwards."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from rb.checkpoints import checkpoint
from rb.checkpoints.listing import list_checkpoints
from rb.core.run_layout import BEST, CHECKPOINTS, step_name
from tests.support.kill_points import Point, points_of, run_traced, wait_for_strace
from tests.support.processes import start_function
from tests.support.saving import SmallRun, same, state_of

# What is there before: steps that are saved, the best among them, how many stay when the next one is saved, whether that is the best.
CASES: dict[str, tuple[tuple[int, ...], int | None, int, bool]] = {
    "first": ((), None, 2, False),
    "prunes": ((8,), None, 1, False),
    "best": ((8, 16), 8, 1, True),
    "best_stays": ((8, 16, 24), 8, 1, False),
    "prunes_three": ((8, 16, 24), None, 1, False),
    "again": ((8, 16), None, 2, False),
}


def next_step(case: str) -> int:
    """The step whose writing is killed."""
    return 8 * (len(CASES[case][0]) + 1)


def prepare(case: str, path: Path) -> None:
    """The run folder as it is before."""
    steps, best, _, _ = CASES[case]
    run = SmallRun(path, keep=9)
    for step in steps:
        assert run.save(step, step == best)
    run.close()
    if case == "again":  # an earlier attempt got one step farther; a killed one left something of either kind
        folder = path / CHECKPOINTS
        shutil.copytree(folder / step_name(16), folder / step_name(24))
        shutil.copytree(folder / step_name(16), folder / ".step_0000024.1-0a.tmp")
        (folder / ".latest.1-0b.tmp").write_text("step")


def write_one_more(case: str, path: Path, gate: Path) -> None:
    """The process that is killed: saves the next step in the background."""
    wait_for_strace(gate, 1)
    run = SmallRun(path, keep=CASES[case][2])
    assert run.save(next_step(case), CASES[case][3])


def points(case: str, folder: Path) -> list[Point]:
    """All points at which the writing of a case can be killed."""
    return points_of(_traced(case, folder), folder)


def kill(case: str, folder: Path, point: Point) -> None:
    """Kill it there. A whole checkpoint must be found, no torn one under a final name, and the next save must leave nothing behind."""
    check_killed(_traced(case, folder, point), folder, point)
    path, (steps, best, keep, is_best) = folder / "run", CASES[case]
    allowed = {steps[-1] if steps else None, next_step(case)}

    found = checkpoint.find(path)
    assert (found.step if found else None) in allowed
    assert found is None or same(checkpoint.load_state(found), state_of(found.step))
    named = [checkpoint.step_of(one) for one in checkpoint.step_folders(path / CHECKPOINTS)]
    for step in named:
        whole = checkpoint.verify(path / CHECKPOINTS / step_name(step))
        numbers = {16, 24} if case == "again" and step == 24 else {step}  # the copy of another step's state
        assert any(same(checkpoint.load_state(whole), state_of(number)) for number in numbers)
    if best:
        of_best = checkpoint.require(path / CHECKPOINTS / BEST)
        assert of_best.step in ({best, next_step(case)} if is_best else {best})

    run = SmallRun(path, keep=keep)  # a process that goes on; its next checkpoint clears up
    assert run.save(1000)
    run.close()
    after = list_checkpoints(path)
    assert after.good
    assert after.left_overs == []
    assert after.faults == []
    assert all(row.fault is None for row in after.rows)
    extra = {row.name for row in after.rows} - {step_name(1000)}
    assert len(extra - {after.best}) == (keep - 1 if named else 0), extra


def check_killed(trace: str, folder: Path, point: Point) -> None:
    """That the kill came where it should: the call is the last one, and was not made."""
    last = points_of(trace, folder)[-1]
    assert (last.call, last.number) == (point.call, point.number), f"killed at {last}, expected {point}"
    assert last.text.endswith(" = ?"), f"not killed in front of {last}"


def _traced(case: str, folder: Path, kill_at: Point | None = None) -> str:
    folder.mkdir()
    prepare(case, folder / "run")
    gate = folder.with_name(folder.name + "_gate")
    return run_traced(partial(start_function, write_one_more, case, folder / "run", gate), gate, kill_at)
