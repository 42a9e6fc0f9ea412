"""A save in the background that is killed at some of its system calls; `tests/drill/test_checkpoint_kills.py` takes every one."""

from __future__ import annotations

from pathlib import Path

from tests.support import killed_saves

CASE, KILLS = "best", 6


def test_a_save_that_is_killed_leaves_whole_checkpoints_and_the_next_one_clears_up(tmp_path: Path) -> None:
    points = killed_saves.points(CASE, tmp_path / "undisturbed")
    assert {"fsync", "write", "rename", "unlinkat", "rmdir", "mkdir"} <= {point.call for point in points}
    for number, point in enumerate(points[:: len(points) // KILLS]):
        killed_saves.kill(CASE, tmp_path / str(number), point)
