"""A kill in front of every system call by which a checkpoint is written: 0 torn ones are accepted, and every run goes on.

SIGKILL comes from strace, attached to the thread that saves in the background, in front of its n-th write, fsync, rename, unlink, mkdir, rmdir, ftruncate, chmod or open
for writing: of the journal's sync, the state, the pointer files, pruning, clearing up. Six folders are there before: an empty one, one with an older
checkpoint to delete, one with three, ones with a best checkpoint that stays or is replaced, one in which an earlier attempt got farther and was killed. After each kill the newest whole
checkpoint is bit-equal to one of the two that may be there, every folder with a final name is whole, and the next save leaves nothing else behind.
Then real trainings are killed at such points in their second save, continue, and end bit-equal to one that nobody disturbed.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from rb.checkpoints import checkpoint
from rb.core.config import FoundationConfig
from rb.core.run_file import to_tree
from tests.support import killed_saves, small_data, tiny
from tests.support.kill_points import points_of, run_traced, wait_for_strace
from tests.support.processes import finish, run_module, start, start_function
from tests.support.saving import same
from tests.support.trials import Trials

STEPS, EVERY = 12, 4
REAL = 12  # trainings that are killed


@pytest.mark.parametrize("case", killed_saves.CASES)
def test_every_call_of_a_save(case: str, trials: Trials, tmp_path: Path) -> None:
    points = {f"{case}: {one.call} {one.number}": one for one in killed_saves.points(case, tmp_path / "undisturbed")}
    assert len(points) > 20
    for number, name in enumerate(trials.left(points)):
        with trials.trial(name):
            killed_saves.kill(case, tmp_path / str(number), points[name])


def train_until_strace_is_there(run_file: Path, folder: Path, gate: Path) -> None:
    """A training whose second save waits for strace."""
    wait_for_strace(gate, 2)
    run_module("rb.train", ["--run", str(run_file), f"output_dir={folder}"])


def test_trainings_go_on(foundation: FoundationConfig, trials: Trials, tmp_path: Path) -> None:
    for name in ("train", "val"):
        small_data.write_set(tmp_path / name, "image_region", 4)
    data = {name: {"image_region": [{"manifest": str(tmp_path / name)}]} for name in ("train", "val")}
    train = {
        "global_batch_size": 1,
        "micro_batch_size": 1,
        "max_steps": STEPS,
        "checkpoint_every": EVERY,
        "num_threads": 1,
    }
    tree: dict[str, Any] = {
        "name": "run",
        "model": to_tree(tiny.model_config(foundation)) | {"train_modalities": ["image_region"]},
        "data": data | {"num_workers": 0},
        "train": train | {"keep_checkpoints": 1, "ds_config": "ds_configs/zero2_cpu.json"},
        "validation": {"every": EVERY, "num_examples": 0, "keep_best": "val/image_region/loss_total"},
        "tracking": {"mlflow": False},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))

    def traced(folder: Path, **kill_at: Any) -> str:
        gate = folder.with_name(folder.name + "_gate")
        started = partial(start_function, train_until_strace_is_there, tmp_path / "run.yaml", folder, gate)
        return run_traced(started, gate, **kill_at)

    whole = tmp_path / "undisturbed"
    points = points_of(traced(whole), whole)
    undisturbed = checkpoint.load_state(checkpoint.require(whole / "run"))
    chosen = {f"training: {one.call} {one.number}": one for one in points[:: max(1, len(points) // REAL)]}
    for number, name in enumerate(trials.left(chosen)):
        with trials.trial(name):
            folder = tmp_path / str(number)
            killed_saves.check_killed(traced(folder, kill_at=chosen[name]), folder, chosen[name])
            finish(start("rb.train", "--resume", folder / "run"))
            found = checkpoint.require(folder / "run")
            assert found.step == STEPS
            assert same(checkpoint.load_state(found), undisturbed)
