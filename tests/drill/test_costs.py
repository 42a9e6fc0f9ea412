"""What watching a run costs of a toy step, in processor time: at most 2 %.

First within a rank: beats, counters and journal (`rb bench watching`). Then the supervisor of two ranks, with its guard, as a share of what the ranks
and their loader processes use in the same time. Processor time is measured because other work on the machine hardly changes it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rb.tracking import metric_points
from tests.support.trials import Figures

ROOT = Path(__file__).resolve().parents[2]
RUN, MOST_PERCENT = "launch/runs/toy_opt.yaml", 2.0
FIRST, LAST = 5, 65  # steps between which the supervisor is measured
SETS = ("refcoco", "objaverse", "scanrefer")


def rb(folder: Path, *words: object) -> list[str]:
    """A command line of ours, with the demo's data in ``folder``."""
    return ["env", f"RB_DEMO={folder}", f"PYTHONPATH={ROOT}", "OMP_NUM_THREADS=1", sys.executable, "-m", "rb.cli"] + [
        str(word) for word in words
    ]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy world's training data, as the demo's run file names them."""
    folder = tmp_path_factory.mktemp("demo")
    commands = [["toy", "raw", "--out", folder / "raw", "--scale", "small"]]
    commands += [
        [
            "prepare",
            name,
            "--raw",
            folder / "raw" / name,
            "--out",
            folder / "shards" / f"{name}_train",
            "--split",
            "train",
        ]
        for name in SETS
    ]
    for words in commands:
        subprocess.run(rb(folder, *words), cwd=ROOT, check=True, capture_output=True)
    return folder


def test_beats_counters_and_journal(demo: Path, figures: Figures) -> None:
    done = subprocess.run(
        rb(demo, "bench", "watching", "--run", RUN, "--json"), cwd=ROOT, check=True, capture_output=True, text=True
    )
    costs = json.loads(done.stdout)
    figures |= {
        "percent of a step within a rank": costs["percent"],
        "ms of a step": costs["step_ms"],
        "ms of beats": costs["beats_ms"],
        "beats of a step": costs["beats_per_step"],
        "ms of counters and journal": costs["between_ms"],
    }
    assert costs["percent"] <= MOST_PERCENT


def test_the_supervisor(demo: Path, figures: Figures) -> None:
    overrides = [f"train.max_steps={LAST + 5}", "train.log_every=1", "tracking.mlflow=false", "name=supervised"]
    run = demo / "runs" / "supervised"
    command = rb(demo, "train", "--ranks", 2, "--run", RUN, *overrides)
    with (demo / "said.txt").open("w+") as said:
        started = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said, env=os.environ.copy())
        before = used_at(FIRST, run, started)
        after = used_at(LAST, run, started)
        assert started.wait(300) == 0, Path(said.name).read_text()
    supervising, training = (late - early for late, early in zip(after, before, strict=True))
    figures |= {
        "percent of training in the supervisor": 100 * supervising / training,
        "ms of the supervisor in a step": 1e3 * supervising / (LAST - FIRST),
    }
    assert 100 * supervising / training <= MOST_PERCENT


def used_at(step: int, run: Path, started: subprocess.Popen[bytes]) -> tuple[float, float]:
    """Processor seconds of the supervisor with its guard, and of the ranks with their loaders, when so many steps are made."""
    while (points := metric_points(run / "journal.jsonl").get("train/lr", [])) == [] or points[-1].step < step:
        assert started.poll() is None, "it ended before"
        time.sleep(0.1)
    top = psutil.Process(started.pid)
    family = [top, *top.children(recursive=True)]
    seconds = {True: 0.0, False: 0.0}
    for process in family:
        times = process.cpu_times()
        watches = process == top or "rb.launching.guard" in process.cmdline()
        seconds[watches] += times.user + times.system
    assert len(family) >= 5  # two ranks, each with a loader
    return seconds[True], seconds[False]


def test_a_step_waits_for_the_copy_of_a_save_and_not_for_its_writing(figures: Figures) -> None:
    words = rb(Path(), "bench", "saving", "--parameters", 60_000_000, "--saves", 5, "--json")
    found = json.loads(subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    figures.update({name: round(found[name], 1) for name in ("step_ms", "copy_ms", "waits_ms", "synchronous_ms")})
    assert found["bytes"] > 3 * 4 * 60_000_000
    assert found["waits_ms"] < max(1.5 * found["copy_ms"], found["copy_ms"] + 50)
