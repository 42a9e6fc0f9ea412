"""Everything that may end ``rb train`` on one host from outside, with two ranks: its exit code, how long it takes, and who is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from rb.checkpoints import checkpoint
from rb.core.config import FoundationConfig
from rb.core.run_file import to_tree
from rb.training.run_end import read_end
from tests.support import small_data, tiny
from tests.support.trials import Figures

ROOT = Path(__file__).resolve().parents[2]
GUARD, RANK = "rb.launching.guard", "rb.train"


@pytest.fixture(scope="module")
def run_dir(foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that would take very long, begun and stopped once."""
    folder = tmp_path_factory.mktemp("launcher")
    small_data.write_set(folder / "clouds", "point_cloud", 7)
    train = {"global_batch_size": 2, "micro_batch_size": 1, "max_steps": 100_000, "checkpoint_every": 20}
    tree = {
        "name": "run",
        "output_dir": str(folder),
        "model": to_tree(tiny.model_config(foundation)) | {"train_modalities": ["point_cloud"]},
        "data": {"train": {"point_cloud": [{"manifest": str(folder / "clouds")}]}, "num_workers": 1},
        "train": train | {"num_threads": 1, "ds_config": "ds_configs/zero2_cpu.json"},
        "tracking": {"mlflow": False},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    code, _, _ = trial(folder / "run", ["--run", str(folder / "run.yaml")], takes_steps, stop_it)
    assert code == 75
    return folder / "run"


Family = dict[str, list[psutil.Process]]  # "guard", "ranks", and "all" below one `rb train`
When = Callable[[Path, Family], bool]
What = Callable[[psutil.Process, Family, Path], None]


def family_of(process: psutil.Process) -> Family:
    found: Family = {"guard": [], "ranks": [], "all": process.children(recursive=True)}
    for child in found["all"]:
        try:
            words, above = child.cmdline(), child.ppid()
        except psutil.Error:
            continue
        if above == process.pid and GUARD in words:
            found["guard"].append(child)
        elif above == process.pid and RANK in words:
            found["ranks"].append(child)
    return found


def trial(run_dir: Path, what: list[str], when: When, fault: What) -> tuple[int, float, str]:
    """One ``rb train`` with one fault: its exit code, the seconds from the fault until nobody is left, and what it said."""
    if run_dir.is_dir():
        (run_dir / "log.txt").write_text("")
    command = [sys.executable, "-m", "rb.cli", "train", "--ranks", "2", *what]
    with (run_dir.parent / "said.txt").open("w+") as said:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        started = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said, start_new_session=True)
        process, since = psutil.Process(started.pid), time.monotonic()
        family = family_of(process)
        while not when(run_dir, family):
            assert started.poll() is None, Path(said.name).read_text()
            assert time.monotonic() < since + 300
            time.sleep(0.1)
            family = family_of(process)
        begun = time.monotonic()
        fault(process, family, run_dir)
        code = started.wait(300)
        _, left = psutil.wait_procs(family["all"], timeout=120)
        took = time.monotonic() - begun
        assert not left, left
        return code, took, Path(said.name).read_text()


def a_rank_starts(_run_dir: Path, family: Family) -> bool:
    return bool(family["ranks"])


def ranks_start(_run_dir: Path, family: Family) -> bool:
    return len(family["ranks"]) == 2


def takes_steps(run_dir: Path, family: Family) -> bool:
    log = run_dir / "log.txt"
    return ranks_start(run_dir, family) and log.is_file() and "saved" in log.read_text()


def stop_it(process: psutil.Process, _family: Family, _run_dir: Path) -> None:
    process.send_signal(signal.SIGTERM)


def kill_it(process: psutil.Process, _family: Family, _run_dir: Path) -> None:
    process.kill()


def kill_guard_and_it(process: psutil.Process, family: Family, _run_dir: Path) -> None:
    family["guard"][0].kill()
    process.kill()


def freeze_a_rank_and_kill_it(process: psutil.Process, family: Family, _run_dir: Path) -> None:
    family["ranks"][1].suspend()
    process.kill()


def kill_a_rank(_process: psutil.Process, family: Family, _run_dir: Path) -> None:
    family["ranks"][1].kill()


def remove_folder(_process: psutil.Process, _family: Family, run_dir: Path) -> None:
    shutil.copytree(run_dir, run_dir.with_name("copy"))
    shutil.rmtree(run_dir)


@pytest.mark.parametrize(
    ("when", "fault", "code", "words"),
    [
        (a_rank_starts, stop_it, 75, ""),
        (ranks_start, stop_it, 75, ""),
        (takes_steps, stop_it, 75, "stopped by SIGTERM; go on with --resume"),
        (ranks_start, kill_it, -9, ""),
        (takes_steps, kill_it, -9, "; go on with --resume"),
        (takes_steps, kill_guard_and_it, -9, "; go on with --resume"),
        (takes_steps, freeze_a_rank_and_kill_it, -9, ""),
        (ranks_start, kill_a_rank, 137, "the run did not finish"),
        (takes_steps, kill_a_rank, 137, "ended by SIGKILL, as the kernel does where memory is short"),
        (takes_steps, remove_folder, 2, "was removed, moved or replaced"),
    ],
)
def test_a_fault_from_outside(run_dir: Path, when: When, fault: What, code: int, words: str, figures: Figures) -> None:
    found, seconds, said = trial(run_dir, ["--resume", str(run_dir)], when, fault)
    figures |= {"seconds until nobody is left": seconds, "exit code": str(found)}
    assert found == code, said
    assert words in said
    if fault is remove_folder:
        assert not run_dir.exists()
        run_dir.with_name("copy").rename(run_dir)
    end = read_end(run_dir)
    if end is not None and when is takes_steps and code == 75:
        assert end.step == checkpoint.require(run_dir).step
    # The lock is free, and the run goes on: the next case shows it.
