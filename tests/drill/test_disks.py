"""A full disk and a read-only one under each place that a run writes to, each place alone: the last good state stays, the exit code is right, and the run goes on by itself when there is room. A run folder that is removed."""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from rb.checkpoints.listing import list_checkpoints
from rb.core.config import FoundationConfig
from rb.core.exit_codes import CANNOT_WRITE, FINISHED, STOPPED, WRONG_REQUEST
from rb.core.run_file import to_tree
from rb.data.formats import read_predictions
from rb.tracking import metric_points
from rb.tracking.commands import sync
from rb.tracking.identity import run_identity
from rb.tracking.sqlite_store import prepare_store
from tests.support import small_data, tiny
from tests.support.disks import SmallDisk, mounted_at, small_disk
from tests.support.mlflow_runs import all_points, client_of
from tests.support.processes import Started, finish, start, start_function
from tests.support.trials import Figures, Trials

FULL, READ_ONLY = "full", "read-only"
MANY_STEPS = 1_000_000


class Case:
    """A run of one rank that ends when it is asked to; its run file, folder and process."""

    def __init__(self, foundation: FoundationConfig, folder: Path) -> None:
        folder.mkdir()
        for split in ("train", "val"):
            small_data.write_set(folder / split, "image_region", 8, split)
        modality = {"image_region": [{"manifest": str(folder / "train")}]}
        held_out = {"image_region": [{"manifest": str(folder / "val")}]}
        tree = {
            "name": "run",
            "output_dir": str(folder),
            "model": to_tree(tiny.model_config(foundation)) | {"train_modalities": ["image_region"]},
            "data": {"train": modality, "val": held_out, "num_workers": 0},
            "train": {
                "global_batch_size": 1,
                "micro_batch_size": 1,
                "max_steps": MANY_STEPS,
                "log_every": 1,
                "checkpoint_every": 20,
                "ds_config": "ds_configs/zero2_cpu.json",
                "num_threads": 1,
            },
            "tracking": {"mlflow": False},
        }
        self.file, self.run = folder / "run.yaml", folder / "run"
        self.file.write_text(yaml.safe_dump(tree))

    @contextmanager
    def started(self, *arguments: object, resume: bool = False, **environment: str) -> Iterator[Started]:
        """A process of it, killed where a check fails."""
        what = ["--resume", self.run] if resume else ["--run", self.file]
        process = start("rb.train", *what, *arguments, **environment)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send(signal.SIGKILL)

    def steps(self) -> list[int]:
        """The steps in the journal."""
        points = metric_points(self.run / "journal.jsonl", on_bad=lambda _: None).get("train/lr", [])
        return [point.step for point in points]

    def made(self) -> int:
        """Steps made, by journal or log: one of them may be on the disk of the trial."""
        logged = re.findall(rf"step (\d+)/{MANY_STEPS}", self.log())
        return max([0, *self.steps()[-1:], *map(int, logged[-1:])])

    def log(self) -> str:
        file = self.run / "log.txt"
        return file.read_text(errors="replace") if file.exists() else ""

    def saved(self) -> int:
        """The step of the newest checkpoint, every byte of it verified; 0 if there is none."""
        if not (self.run / "checkpoints").exists():
            return 0
        found = list_checkpoints(self.run)
        return found.rows[0].step if found.good and found.rows[0].latest else 0

    def wait(self, process: Started, happened: Callable[[], object]) -> None:
        """Until something happens that the run goes on for."""
        end = time.monotonic() + 300
        while not happened():
            assert process.poll() is None, process.output()[-3000:]
            assert time.monotonic() < end, process.output()[-3000:]
            time.sleep(0.05)

    def goes_on(self, process: Started) -> None:
        """It makes 50 more steps."""
        made = self.made()
        self.wait(process, lambda: self.made() >= made + 50)

    def stop(self, process: Started, code: int) -> None:
        """Ask it to stop; it must end with ``code``."""
        process.send(signal.SIGTERM)
        assert process.wait() == code, process.output()[-3000:]


def spoil(disk: SmallDisk, how: str) -> None:
    if how == FULL:
        disk.fill()
    else:
        disk.read_only(True)


def mend(disk: SmallDisk, how: str) -> None:
    if how == FULL:
        disk.empty()
    else:
        disk.read_only(False)


# A disk of its own under each place; it is spoiled while the run goes on


def checkpoints(case: Case, how: str, figures: Figures) -> None:
    """No checkpoint can be written: the last one stays, training goes on; then there is room, and the next one is written by itself."""
    case.run.mkdir()
    with small_disk(case.run / "checkpoints", "4m") as disk, case.started() as process:
        case.wait(process, lambda: case.saved() >= 20)
        spoil(disk, how)
        case.wait(process, lambda: "is not saved" in case.log())
        whole = case.saved()
        case.goes_on(process)
        assert case.saved() == whole > 0
        mend(disk, how)
        case.wait(process, lambda: case.saved() > whole)
        case.stop(process, STOPPED)
        assert case.saved() == case.made() == case.steps()[-1]
        assert case.log().count("is not saved") == 1
        figures["steps not saved"] = case.log().count("is not saved")


def checkpoints_to_the_end(case: Case, how: str, figures: Figures) -> None:
    """The last step cannot be saved: 73. The last whole checkpoint stays, and --resume goes on from it."""
    case.run.mkdir()
    with small_disk(case.run / "checkpoints", "4m") as disk:
        with case.started() as process:
            case.wait(process, lambda: case.saved() >= 20)
            spoil(disk, how)
            case.wait(process, lambda: "is not saved" in case.log())
            whole = case.saved()
            case.stop(process, CANNOT_WRITE)
        assert case.saved() == whole > 0
        figures["steps made again"] = case.made() - whole
        mend(disk, how)
        with case.started(resume=True) as process:
            case.wait(process, lambda: case.saved() > whole)
            case.stop(process, STOPPED)
        assert f"steps {whole} to" in case.log()
    assert case.steps() == list(range(1, case.made() + 1))


def pages(case: Case, how: str, figures: Figures) -> None:
    """A page that cannot be written is left out, and the next one is written again."""
    case.run.mkdir()
    with small_disk(case.run / "validation", "4m") as disk:
        options = ["validation.every=10", "validation.num_examples=1", "validation.num_loss_batches=1"]
        with case.started(*options) as process:
            folder = disk.path

            def newest() -> str:
                return max((path.name for path in folder.glob("step_*.html")), default="")

            case.wait(process, newest)
            spoil(disk, how)
            case.wait(process, lambda: "the work goes on without it" in case.log())
            last = newest()
            content = (folder / last).read_bytes()
            case.goes_on(process)
            assert newest() == last
            assert (folder / last).read_bytes() == content
            mend(disk, how)
            case.wait(process, lambda: newest() > last)
            case.stop(process, STOPPED)
        assert case.log().count("the work goes on without it") == 1
        assert not [path.name for path in folder.iterdir() if path.suffix == ".tmp"]


def one_file(case: Case, how: str, name: str) -> None:
    """Journal or log, each bound from a disk of its own: rows wait in memory and come in order; read-only at the start is 73."""
    with small_disk(case.run.parent / "disk", "4m") as disk, mounted_at(disk.path / name, case.run / name):
        if how == READ_ONLY:  # what is open for writing cannot become so
            disk.read_only(True)
            with case.started() as process:
                assert process.wait() == CANNOT_WRITE, process.output()[-3000:]
                assert f"{case.run / name}: cannot be written (Read-only file system" in process.output()
            disk.read_only(False)
            begun = (case.run / "config.yaml").exists()
            with case.started(resume=begun) as process:
                case.goes_on(process)
                case.stop(process, STOPPED)
        else:
            with case.started() as process:
                case.wait(process, lambda: case.made() > 20)
                disk.fill()
                case.wait(process, lambda: f"{name}: cannot be written" in process.output())
                case.goes_on(process)
                disk.empty()
                case.wait(process, lambda: f"{name}: can be written again" in process.output())
                case.goes_on(process)
                case.stop(process, STOPPED)
                assert process.output().count(f"{name}: cannot be written") == 1
        assert case.steps() == list(range(1, case.made() + 1))
        logged = [int(step) for step in re.findall(rf"step (\d+)/{MANY_STEPS}", case.log())]
        assert logged == list(range(1, case.made() + 1))
        assert case.saved() == case.made()


def journal(case: Case, how: str, figures: Figures) -> None:
    one_file(case, how, "journal.jsonl")


def log(case: Case, how: str, figures: Figures) -> None:
    one_file(case, how, "log.txt")


def store(case: Case, how: str, figures: Figures) -> None:
    """MLflow's sqlite file: the copy goes on when there is room, and has every point once. What is open cannot become read-only, so it is at the start."""
    with small_disk(case.run.parent / "disk", "16m") as disk, pytest.MonkeyPatch.context() as environment:
        file = disk.path / "mlflow.db"
        variables = {"MLFLOW_TRACKING_URI": f"sqlite:///{file}"}
        if how == READ_ONLY:
            finish(start_function(prepare_store, file))
            disk.read_only(True)
        with case.started("tracking.mlflow=true", **variables) as process:
            if how == FULL:
                identity = case.run / "mlflow.json"
                case.wait(process, lambda: identity.exists() and "run_id" in run_identity(case.run))
                disk.fill()
            case.wait(process, lambda: "cannot be reached" in case.log())
            case.goes_on(process)
            mend(disk, how)
            case.wait(process, lambda: "is back and has everything" in case.log())
            case.stop(process, STOPPED)
        environment.setenv("MLFLOW_TRACKING_URI", variables["MLFLOW_TRACKING_URI"])
        sync(case.run)
        found = all_points(client_of(disk.path), run_identity(case.run)["run_id"])
        points = metric_points(case.run / "journal.jsonl")
        assert found == {(name, point.step): 1 for name, row in points.items() for point in row}
        figures["points lost"] = 0


def predictions(case: Case, how: str, figures: Figures) -> None:
    """`rb predict` says at once that its file cannot be written: 73, what is there stays; with room it is written."""
    with case.started("train.max_steps=20") as process:
        assert process.wait() == FINISHED, process.output()
    with small_disk(case.run.parent / "disk", "4m") as disk:
        out = disk.path / "predictions.jsonl"
        arguments = ["predict", "--checkpoint", case.run, "--data", case.run.parent / "val"]
        arguments += ["--modality", "image_region", "--out", out]
        out.write_text("of before")
        spoil(disk, how)
        refused = start("rb.cli", *arguments)
        assert refused.wait() == CANNOT_WRITE, refused.output()
        assert f"{out}: cannot be written" in refused.output()
        assert out.read_text() == "of before"
        mend(disk, how)
        finish(start("rb.cli", *arguments))
        assert read_predictions(out)[0]


PLACES = (checkpoints, checkpoints_to_the_end, journal, log, pages, store, predictions)


def test_a_disk_under_one_place(foundation: FoundationConfig, trials: Trials, tmp_path: Path) -> None:
    cases = {
        f"{how}: {place.__name__.replace('_', ' ')}": (place, how) for place in PLACES for how in (FULL, READ_ONLY)
    }
    for name in trials.left(cases):
        with trials.trial(name) as figures:
            place, how = cases[name]
            place(Case(foundation, tmp_path / name.replace(": ", "-")), how, figures)


@pytest.mark.parametrize("what", ["removed", "moved"])
def test_the_run_folder_goes_away(foundation: FoundationConfig, tmp_path: Path, figures: Figures, what: str) -> None:
    """The run ends with 2 and says so, and nothing is made in its place; a folder that was moved can be continued."""
    case, away = Case(foundation, tmp_path / "case"), tmp_path / "away"
    with case.started() as process:
        case.wait(process, lambda: case.saved() >= 20)
        began = time.monotonic()
        case.run.rename(away)
        if what == "removed":
            shutil.rmtree(away)
        assert process.wait() == WRONG_REQUEST, process.output()[-3000:]
        figures["seconds to the end"] = round(time.monotonic() - began, 1)
        assert "the run folder was removed, moved or replaced" in process.output()
        assert not case.run.exists()
    if what == "moved":
        away.rename(case.run)
        whole = case.saved()
        with case.started(resume=True) as process:
            case.wait(process, lambda: case.saved() > whole)
            case.stop(process, STOPPED)
