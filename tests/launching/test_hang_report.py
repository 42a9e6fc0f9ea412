"""The report of a hang: what of every rank is in it, who did not answer, and that it is whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rb.core.config import LimitsConfig
from rb.core.heartbeat import Beat
from rb.launching import hang_report
from rb.launching.hang_report import write_report
from rb.launching.states import NodeState, RankState
from rb.launching.verdict import Verdict, judge

SAMPLES = tuple(f"coco/{i}" for i in range(20))


def beat(collectives: int, waits_in: str) -> Beat:
    return Beat(
        count=9, time=1.0, phase="training", step=7, collectives=collectives, waits_in=waits_in, samples=SAMPLES
    )


NODES = (
    NodeState(
        0,
        "alpha",
        (
            RankState(0, 100, beat=beat(50, "all_reduce"), silent_s=31.04),
            RankState(1, 101, code=137, ended_s=2, beat=beat(50, "")),
        ),
        stacks={0: 'Current thread:\n  File "loop.py", line 7 in take_steps\n'},
    ),
    NodeState(
        1, "beta", (RankState(2, 200, beat=beat(49, ""), silent_s=31.5, stopped=True), RankState(3, 201, silent_s=40.0))
    ),
)


@pytest.fixture
def verdict() -> Verdict:
    found = judge([NODES[1]], LimitsConfig(training_s=30, start_s=1000))
    assert found is not None
    return found


def test_it_has_what_is_known_of_every_rank(tmp_path: Path, verdict: Verdict) -> None:
    folder = write_report(tmp_path / "run", verdict, NODES)
    assert folder.parent == tmp_path / "run" / "hangs"
    tree = json.loads((folder / "report.json").read_text())
    assert tree["format"] == 1
    assert tree["verdict"]["code"] == 4
    assert tree["verdict"]["culprits"] == [{"node": 1, "host": "beta", "rank": 2}]
    rank = tree["nodes"][0]["ranks"][0]
    assert (rank["beat"]["waits_in"], rank["beat"]["samples"][-1]) == ("all_reduce", "coco/19")
    assert tree["nodes"][0]["stacks"]["0"].endswith("take_steps\n")

    lines = (folder / "report.txt").read_text().splitlines()
    assert lines[0].endswith(verdict.sentence)
    assert "node 0, alpha: heard 0.0 s ago" in lines
    assert (
        f"  rank 0 (process 100): training, 7 steps made, in all_reduce (50 begun), last progress 31.0 s ago; "
        f"samples {', '.join(SAMPLES[:16])} and 4 more" in lines
    )
    assert "  rank 1 (process 101): ended with 137, 2.0 s ago" in lines
    assert any(line.startswith("  rank 2 (process 200): stopped, training") for line in lines)
    assert "  rank 3 (process 201): no sign of progress since its start, 40.0 s ago" in lines
    assert any(line.startswith("No stacks from ranks 1, 2, 3") for line in lines)
    assert lines[-3:] == ["", "Current thread:", '  File "loop.py", line 7 in take_steps']


def test_every_report_has_its_folder_and_is_whole(
    tmp_path: Path, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {write_report(tmp_path, verdict, NODES) for _ in range(3)}
    assert len(folders) == 3

    def fail(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hang_report, "describe", fail)
    with pytest.raises(OSError, match="No space"):
        write_report(tmp_path, verdict, NODES)
    assert set((tmp_path / "hangs").iterdir()) == folders
