"""``rb bench all`` and ``rb bench score``: every part is a command that can be typed, what does not run is named, scores are timed by metric."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rb.bench.everything import Part, cores_for_steps, run_part
from tests.support.raw_data import cli_run
from tests.support.remedies import Fault, Said, remedy

RB = (sys.executable, "-m", "rb.cli")
WORDS = ("--metrics", "CIDEr", "METEOR", "--no-java")


def test_no_time_is_said_part_by_part(tmp_path: Path) -> None:
    out = tmp_path / "all.json"
    assert cli_run("bench", "all", "--run", "toy_opt", "--baseline", "--minutes", "0", "--out", str(out)) == 1
    parts = json.loads(out.read_text())["parts"]
    assert list(parts) == ["score", "counters", "generate", "step, groups of 1", "step, groups of 4", "data"]
    for part in parts.values():
        assert "give more --minutes" in part["not_run"]
        assert "--device auto" in part["command"] or part["command"].split()[2] in ("score", "data", "step")


def test_a_part_runs_or_says_why_not() -> None:
    found = run_part(Part("score", ("score", "--captions", "3", *WORDS)), RB, 120)
    assert found["found"]["captions"] == 3
    assert found["found"]["cpu_seconds"].keys() == {"tokeniser", "CIDEr", "attainable"}
    assert found["found"]["java_starts"] == {}
    assert min(found["found"]["cpu_seconds"].values()) >= 0
    assert "METEOR" in found["found"]["skipped"]
    assert "must be at least 1" in run_part(Part("score", ("score", "--captions", "0")), RB, 120)["not_run"]


@remedy("not done after {} s; give more --minutes", also=["no time was left; give more --minutes"])
def test_more_minutes() -> tuple[Fault, Callable[[Said], object]]:
    given = {"seconds": 0.01}

    def measured() -> None:
        found = run_part(Part("score", ("score", "--captions", "3", *WORDS)), RB, **given)
        if "not_run" in found:
            raise ValueError(found["not_run"])

    return measured, lambda _: given.update(seconds=120)


def test_cores_for_the_fastest_step() -> None:
    step = {"found": {"modalities": {"image": {"samples_per_s": 10.0}, "cloud": {"samples_per_s": 30.0}}}}
    rows = [
        {"set": "clouds", "group_by_source": 4, "reader": "rb", "samples_per_s": 60.0},
        {"set": "clouds", "group_by_source": None, "reader": "webdataset", "samples_per_s": 90.0},
    ]
    assert cores_for_steps({"step, groups of 1": step, "data": {"found": rows}}) == {"clouds, groups of 4": 0.5}
    assert cores_for_steps({"data": {"found": rows}}) == {}


def test_score_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_run("bench", "score", "--captions", "3", *WORDS) == 0
    printed = capsys.readouterr().out
    assert "METEOR: not measured: " in printed
    assert "tokeniser" in printed
