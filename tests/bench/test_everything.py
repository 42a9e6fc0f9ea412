"""``rb bench all`` and ``rb bench score``: every part is a command that can be typed, what does not run is named, scores are timed by metric."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rb.bench.everything import Part, cores_for_steps, parts_of, run_part
from rb.bench.scoring_cost import captions
from rb.cli import COMMANDS
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


def test_on_a_gpu_full_size_comes_first() -> None:
    """Within nine minutes what only a GPU can say is what matters; each line is a command that our parser takes."""
    args = bench_arguments("all", "--device", "cuda", "--baseline")
    parts = parts_of(args, on_gpu=True)
    assert parts[0].module == "rb.gpu_check"
    names = [part.name for part in parts]
    assert names[1:4] == ["gpu, opt_6.7b, 16", "gpu, opt_6.7b, 128", "gpu, flant5_xxl, 16"]
    assert names.index("fps") < names.index("score")
    for part in parts[1:]:
        assert bench_arguments(*part.words).run
        assert "cuda" in part.words or part.words[0] in ("score", "data")


def bench_arguments(*words: str) -> argparse.Namespace:
    """What ``rb bench WORDS`` asks for."""
    command = next(one for one in COMMANDS if one.name == f"bench {words[0]}")
    return command.parser().parse_intermixed_args(words[1:])


def test_a_part_runs_or_says_why_not() -> None:
    found = run_part(Part("score", ("score", "--captions", "3", *WORDS)), RB, 120)
    assert found["found"]["captions"] == 3
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


def test_made_up_texts_repeat_where_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli_run("bench", "score", "--captions", "50", "--texts", "7", "--no-java", "--metrics", "BLEU-1", "--json") == 0
    )
    assert json.loads(capsys.readouterr().out)["different_texts"] == 7
    some, more = ({text for texts in captions(50, n).references.values() for text in texts} for n in (7, 9))
    assert some < more
    assert cli_run("bench", "score", "--texts", "0") == 2
    assert "--texts 0: must be 1 to 100,000" in capsys.readouterr().err
