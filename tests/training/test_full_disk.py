"""A disk that is full under a training: no step is stopped by it, the last checkpoint stays, and the end says what is not saved."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml

from rb.checkpoints import checkpoint
from rb.core import dist
from rb.core.config import FoundationConfig
from rb.core.exit_codes import CANNOT_WRITE, code_of, leave
from rb.core.files import write_whole
from rb.core.run_file import to_tree
from rb.tracking import metric_points
from rb.tracking.closing import last_status
from rb.training.agree import FailedElsewhereError, on_main
from rb.training.validate import Best
from tests.support import small_data, tiny
from tests.support.disks import SmallDisk, small_disk
from tests.support.processes import finish, start, start_function_ranks
from tests.support.saving import SmallRun

STEPS = 12


class Case(SmallRun):
    """A small run on a small disk."""

    def __init__(self, disk: SmallDisk) -> None:
        super().__init__(disk.path / "run")
        self.disk = disk


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    with small_disk(tmp_path / "disk") as disk:
        yield Case(disk)


def test_a_checkpoint_that_does_not_fit_is_tried_again_when_there_is_room(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    saver = case.saver
    assert case.save(8)
    case.disk.fill(leave=100_000)
    assert not case.save(16)
    assert case.newest() == 8
    assert (
        "step_0000016: cannot be written (No space left on device; 200,000 bytes needed, 98,304 free)" in saver.missed
    )
    tried = [step for step in range(17, 60) if saver.due(step) and not case.save(step)]
    assert tried == [17, 25, 35, 45, 50]
    assert case.parts.gathered == 2  # nothing is gathered where free bytes say that it does not fit
    case.disk.empty()
    assert saver.due(63)
    assert case.save(63)
    assert (case.newest(), saver.missed) == (63, "")
    assert not saver.due(65)
    assert len([record for record in caplog.records if "is not saved" in record.getMessage()]) == 1


def test_a_refusal_that_free_bytes_do_not_show_leaves_the_last_one_whole(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a quota: found in the middle of writing."""
    monkeypatch.setattr("rb.checkpoints.checkpoint.check_room", lambda *_: None)
    assert case.save(8)
    case.disk.fill(leave=50_000)
    case.parts.best = Best("val/image_region/CIDEr", 1.0, 16)
    assert not case.save(16, best=True)
    assert "No space left on device" in case.saver.missed
    assert case.newest() == 8
    assert [found.name for found in (case.folder.path / "checkpoints").glob("step_*")] == ["step_0000008"]
    assert case.parts.best is None  # no checkpoint has those weights


def test_rows_are_on_the_disk_before_the_checkpoint_that_claims_them(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power failure the disk has what was synced: here, a copy of it at that time."""
    journal, synced = case.folder.path / "journal.jsonl", case.disk.path / "synced"
    real = os.fsync

    def fsync(fd: int) -> None:
        real(fd)
        if os.path.samestat(os.fstat(fd), journal.stat()):
            assert not (case.folder.path / "checkpoints" / "latest").exists()
            shutil.copy(journal, synced)

    monkeypatch.setattr(os, "fsync", fsync)
    for step in range(1, 9):
        case.tracker.metrics(step, {"train/lr": 1.0})
    assert case.save(8)
    assert case.newest() == 8
    assert [point.step for point in metric_points(synced)["train/lr"]] == list(range(1, 9))


@pytest.fixture(scope="module")
def run_file(foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps on four regions, saved every 4 steps."""
    folder = tmp_path_factory.mktemp("full-disk")
    small_data.write_set(folder / "regions", "image_region", 4)
    tree = {
        "name": "run",
        "output_dir": str(folder / "runs"),
        "model": to_tree(tiny.model_config(foundation)) | {"train_modalities": ["image_region"]},
        "data": {"train": {"image_region": [{"manifest": str(folder / "regions")}]}, "num_workers": 0},
        "train": {
            "global_batch_size": 1,
            "micro_batch_size": 1,
            "max_steps": STEPS,
            "log_every": 1,
            "checkpoint_every": 4,
            "ds_config": "ds_configs/zero2_cpu.json",
            "num_threads": 1,
            "timeout_s": 60,
        },
        "tracking": {"mlflow": False},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    return folder / "run.yaml"


def test_a_run_makes_all_steps_on_a_full_disk_and_ends_with_its_own_code(run_file: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "240k") as disk:  # room for one checkpoint of 80 kB
        run = disk.path / "run"
        output = finish(start("rb.train", "--run", run_file, f"output_dir={disk.path}"), code=CANNOT_WRITE)
        assert (
            f"{run}/checkpoints/step_0000008: cannot be written (No space left on device; 76,644 bytes needed" in output
        )
        assert f"step {STEPS}, the last, is not saved" in output
        assert checkpoint.require(run).step == 4
        assert json.loads((run / "end.json").read_text())["code"] == CANNOT_WRITE
        assert last_status(run) == "FAILED"
        assert [point.step for point in metric_points(run / "journal.jsonl")["train/lr"]] == list(range(1, STEPS + 1))
        disk.resize("2m")
        finish(start("rb.train", "--resume", run))
        assert checkpoint.require(run).step == STEPS
        assert [point.step for point in metric_points(run / "journal.jsonl")["train/epoch"]] == list(
            range(1, STEPS + 1)
        )


def write_as_rank_0(path: Path) -> None:
    """End with the code that `rb.train` ends with where rank 0 cannot write."""
    dist.init()
    try:
        on_main(partial(write_whole, path, "x" * 5000))
    except FailedElsewhereError as error:
        leave(error.code)
    except OSError as error:
        leave(code_of(error))


@pytest.mark.dist
def test_every_rank_ends_with_the_code_of_the_one_that_cannot_write(tmp_path: Path) -> None:
    """A launcher passes on the code of the rank that ends first."""
    with small_disk(tmp_path / "disk") as disk:
        disk.fill()
        finish(*start_function_ranks(2, write_as_rank_0, disk.path / "config.yaml"), code=CANNOT_WRITE)
