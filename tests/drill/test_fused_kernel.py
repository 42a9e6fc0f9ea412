"""``optim.kernel: deepspeed_fused``, compiled here for the CPU: trains two modalities in turns, resumes bit-equal, and holds idle groups still.

Needs g++ and ninja; the first start compiles for about a minute. On a GPU the kernel of the same name is another one: not run yet.
"""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml

from rb.checkpoints import checkpoint
from rb.core.config import FoundationConfig
from rb.core.run_file import to_tree
from rb.core.run_layout import CHECKPOINTS, LATEST, step_name
from tests.support import small_data, tiny
from tests.support.processes import finish, start_ranks
from tests.support.trials import Figures

STEPS, RESUMED = 6, 3
PLACES = {"image_region": "regions", "point_cloud": "clouds"}
APART = 1e-5  # parameters of one kernel from those of the other after all steps, a hundredth of the rate: another order of sums, nothing else


@pytest.fixture(scope="module")
def run_file(foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps on two ranks, regions and clouds in turns, saved after each."""
    folder = tmp_path_factory.mktemp("fused")
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


@pytest.fixture(scope="module")
def fused(run_file: Path) -> Path:
    """The run with DeepSpeed's kernel."""
    output = finish(*trained(run_file, "fused", "deepspeed_fused"), timeout=600)
    assert "deepspeed_fused" in output
    return run_file.parent / "fused"


def trained(run_file: Path, name: str, kernel: str) -> list:  # type: ignore[type-arg]
    return start_ranks(2, "rb.train", "--run", run_file, f"name={name}", f"optim.kernel={kernel}")


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


def test_it_trains_as_torchs_kernel(run_file: Path, fused: Path, figures: Figures) -> None:
    finish(*trained(run_file, "plain", "torch"))
    one, other = (states(run)[-1].tensors["parameter"] for run in (fused, run_file.parent / "plain"))
    figures["largest difference of a parameter"] = max(float((one[n] - other[n]).abs().max()) for n in one)
    assert figures["largest difference of a parameter"] < APART


def test_idle_groups_stand_still(fused: Path, figures: Figures) -> None:
    """A step moves tensors of one modality only, parameters and moments."""
    made = states(fused)
    moved = [differ(before, after) for before, after in pairwise(made)]
    of = [{m for m in PLACES for name in names if f".{m}." in name or f"{m}" in name.split(".")} for names in moved]
    figures["steps that moved two modalities"] = sum(len(modalities) != 1 for modalities in of)
    assert figures["steps that moved two modalities"] == 0
    assert {next(iter(modalities)) for modalities in of} == set(PLACES)


def test_it_resumes_bit_equal(fused: Path, figures: Figures) -> None:
    expected = states(fused)[-1]
    copy = fused.parent / "resumed"
    shutil.copytree(fused, copy)
    for step in range(RESUMED + 1, STEPS + 1):
        shutil.rmtree(copy / CHECKPOINTS / step_name(step))
    (copy / CHECKPOINTS / LATEST).write_text(step_name(RESUMED) + "\n")
    finish(*start_ranks(2, "rb.train", "--resume", copy), timeout=600)
    figures["tensors that differ"] = len(differ(expected, states(copy)[-1]))
    assert figures["tensors that differ"] == 0
