"""Six steps of a tiny training on two ranks, and the training state after each: for drills that compare ways to train."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import yaml

from rb.checkpoints import checkpoint
from rb.core.config import FoundationConfig
from rb.core.run_file import to_tree
from rb.core.run_layout import CHECKPOINTS, LATEST, step_name
from tests.support import small_data, tiny

STEPS = 6
PLACES = {"image_region": "regions", "point_cloud": "clouds"}


def write_run(foundation: FoundationConfig, folder: Path) -> Path:
    """A run file: regions and clouds in turns, saved after each step."""
    for modality, name in PLACES.items():
        small_data.write_set(folder / name, modality, 12)
    every = {"log_every": 1, "checkpoint_every": 1, "keep_checkpoints": STEPS}
    tree = {
        "output_dir": str(folder),
        "model": to_tree(tiny.model_config(foundation)),
        "data": {"train": {m: [{"manifest": str(folder / n)}] for m, n in PLACES.items()}, "num_workers": 1},
        "optim": {"lr": 1e-3, "warmup_steps": 1, "grad_clip": 1.0},
        "train": {"global_batch_size": 4, "micro_batch_size": 2, "max_steps": STEPS, "num_threads": 1, **every}
        | {"ds_config": "ds_configs/zero2_cpu.json"},
        "tracking": {"mlflow": False},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    return folder / "run.yaml"


def copy_until(run: Path, copy: Path, step: int) -> None:
    """The run as it was after that step, to be resumed."""
    shutil.copytree(run, copy)
    for later in range(step + 1, STEPS + 1):
        shutil.rmtree(copy / CHECKPOINTS / step_name(later))
    (copy / CHECKPOINTS / LATEST).write_text(step_name(step) + "\n")


def states(run: Path) -> list[checkpoint.TrainState]:
    """After each step."""
    return [
        checkpoint.load_state(checkpoint.require(run / CHECKPOINTS / step_name(step))) for step in range(1, STEPS + 1)
    ]


def differ(one: checkpoint.TrainState, other: checkpoint.TrainState) -> set[str]:
    """Names of what differs in a parameter or a moment."""
    return {
        name
        for kind in checkpoint.KINDS
        for name, value in one.tensors[kind].items()
        if not torch.equal(value, other.tensors[kind][name])
    }
