"""Checkpoints are written beside the steps that follow: what the step waits for, and when the ranks learn of the outcome."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from rb.checkpoints import checkpoint
from rb.core import dist
from rb.core.exit_codes import leave
from rb.training import saving
from rb.training.agree import FailedElsewhereError, agreed
from rb.training.validate import Best
from tests.support.processes import finish, start, start_function_ranks
from tests.support.saving import SmallRun

LIMIT_S = 60


class Gate:
    """Stands before `checkpoint.save`: a writing thread waits in front of it until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened = threading.Semaphore(0), threading.Semaphore(0)
        self._save = checkpoint.save
        monkeypatch.setattr(checkpoint, "save", self)

    def __call__(self, *arguments: Any) -> Path:
        self.reached.release()
        assert self.opened.acquire(timeout=LIMIT_S)
        return self._save(*arguments)


def test_steps_go_on_while_a_checkpoint_is_written_and_the_next_one_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, run = Gate(monkeypatch), SmallRun(tmp_path / "run")
    assert run.begin(25)
    assert gate.reached.acquire(timeout=LIMIT_S)
    run.tracker.metrics(26, {"train/lr": 1.0})  # a later step
    for _ in range(3):
        assert run.saver.report() == saving.NO_NEWS
        run.saver.settle(saving.NO_NEWS)
    assert not any(map(run.saver.due, range(26, 50)))
    assert checkpoint.find(run.folder.path) is None
    threading.Timer(0.05, gate.opened.release, [2]).start()
    assert run.begin(50)  # returns only once step 25 is written
    assert run.newest() in (25, 50)
    assert (run.folder.path / "checkpoints" / "step_0000025").is_dir()
    assert run.saver.wait()
    assert (run.newest(), run.saver.report()) == (50, saving.NO_NEWS)


def test_a_step_that_fails_leaves_when_the_checkpoint_before_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "rb")
    gate, run = Gate(monkeypatch), SmallRun(tmp_path / "run")
    with pytest.raises(ZeroDivisionError), run.saver:
        run.begin(25)
        assert gate.reached.acquire(timeout=LIMIT_S)
        threading.Timer(0.05, gate.opened.release).start()
        _ = 1 / 0
    assert run.newest() == 25
    assert "step 25: saved" in caplog.text


def test_what_is_no_users_fault_ends_the_run_at_its_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = SmallRun(tmp_path / "run")
    monkeypatch.setattr(checkpoint, "save", lambda *_: 1 / 0)
    run.begin(25)
    with pytest.raises(ZeroDivisionError):
        run.saver.wait()


def test_rows_are_written_while_the_journal_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = SmallRun(tmp_path / "run")
    syncing, go_on, real = threading.Event(), threading.Event(), os.fsync

    def slow(handle: int) -> None:
        syncing.set()
        assert go_on.wait(LIMIT_S)
        real(handle)

    monkeypatch.setattr(os, "fsync", slow)
    run.begin(25)
    assert syncing.wait(LIMIT_S)
    run.tracker.metrics(26, {"train/lr": 1.0})  # would wait for ever behind the sync's lock
    go_on.set()
    assert run.saver.wait()


def one_of_two_ranks(path: Path) -> None:
    """Rank 0's file system refuses, then the run folder goes away: both ranks learn of it from the numbers of a step."""
    dist.init(timeout_s=LIMIT_S)
    found = dist.gather(torch.full((2, 3), dist.rank()))
    assert found is None if dist.rank() else found.tolist() == [[0] * 3] * 2 + [[1] * 3] * 2
    run = SmallRun(path)
    assert run.save(25)
    run.parts.best = Best("val/image_region/CIDEr", 1.0, 50)
    real, checkpoint.check_room = checkpoint.check_room, refuse
    run.begin(50, best=True)
    run.saver._join()
    wish, report = agreed(dist.rank(), run.saver.report())
    assert (wish, report) == (1, saving.NOT_WRITTEN)
    run.saver.settle(report)
    assert run.saver.missed
    assert run.parts.best is None  # no checkpoint has those weights
    assert run.saver.due(51)
    checkpoint.check_room = real
    assert run.save(51)
    assert not run.saver.missed
    if dist.is_main():
        assert run.newest() == 51
        path.rename(path.with_name("moved"))
    dist.barrier()
    run.begin(75)
    expected: type[Exception] = FailedElsewhereError if dist.rank() else ValueError
    with pytest.raises(expected, match="^2$" if dist.rank() else "the run folder was removed, moved or replaced"):
        run.saver.wait()
    leave(0)


def refuse(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.dist
def test_both_ranks_learn_of_the_outcome_from_the_numbers_of_a_step(tmp_path: Path) -> None:
    finish(*start_function_ranks(2, one_of_two_ranks, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.dist
def test_the_benchmark_of_saving_runs(tmp_path: Path) -> None:
    output = finish(
        start("rb.cli", "bench", "saving", "--parameters", 1000, "--saves", 1, "--json", "--folder", tmp_path)
    )
    found = json.loads(output[output.index("{") :])
    assert found["bytes"] > 12_000
    assert min(found.values()) > 0
