"""A run of two ranks whose numbers go wrong (`poison.py`), and how states and losses are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import yaml

from rb.checkpoints import checkpoint
from rb.core.config import FoundationConfig
from rb.core.run_file import to_tree
from rb.training.replay import Replay
from tests.support import poison, small_data, tiny
from tests.support.processes import finish, start_ranks

RANKS = 2


def bad_run(
    foundation: FoundationConfig,
    folder: Path,
    plan: poison.Plan,
    modalities: Sequence[str],
    code: int = 0,
    model: Mapping[str, object] | None = None,
    ranks: int = RANKS,
    **train: object,
) -> tuple[Path, str]:
    """The run folder, and what the ranks said, which all end with ``code``. Every step is logged and saved; 4 samples a step, in micro-batches of 1 and pools of 2.

    So rank 0 has the positions 0 and 2 of a step, rank 1 has 1 and 3; modalities take their turns one after another.
    """
    for modality in modalities:
        small_data.write_set(folder / modality, modality, 10)
    settings = {
        "schedule": "round_robin",
        "global_batch_size": 4,
        "micro_batch_size": 1,
        "contrastive_batch_size": 2,
        "log_every": 1,
        "checkpoint_every": 1,
        "keep_checkpoints": 1000,
        "ds_config": "ds_configs/zero2_cpu.json",
        "num_threads": 1,
        "timeout_s": 60,
    }
    tree = {
        "name": "run",
        "output_dir": str(folder / "runs"),
        "model": to_tree(tiny.model_config(foundation)) | {"train_modalities": list(modalities)} | dict(model or {}),
        "data": {"train": {m: [{"manifest": str(folder / m)}] for m in modalities}, "num_workers": 0},
        "optim": {"lr": 1e-3, "warmup_steps": 0},
        "train": settings | train,
        "tracking": {"mlflow": False},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    started = start_ranks(
        ranks, "tests.support.poison", poison.write(plan, folder / "plan.json"), "--run", folder / "run.yaml"
    )
    return folder / "runs" / "run", finish(*started, code=code)


def state_at(run_dir: Path, step: int) -> checkpoint.TrainState:
    """The saved state of a step."""
    return checkpoint.load_state(checkpoint.require(run_dir / "checkpoints" / f"step_{step:07}"))


def moved(one: checkpoint.TrainState, other: checkpoint.TrainState) -> list[str]:
    """What differs between two states, in any bit."""
    return [
        f"{kind} {name}"
        for kind in checkpoint.KINDS
        for name, value in one.tensors[kind].items()
        if not torch.equal(value, other.tensors[kind][name])
    ]


def apart(found: Replay) -> float:
    """The largest relative difference of a finite loss of a replay to the journal's: of each rank, or of their mean where the journal has that."""
    ranks, infinite = found.losses, float("inf")
    if len(found.recorded) == 1:
        ranks = [{name: sum(rank[name] for rank in ranks) / len(ranks) for name in ranks[0]}]
    pairs = [(rank[name], row[name]) for rank, row in zip(ranks, found.recorded, strict=True) for name in rank]
    assert all((abs(one) < infinite) == (abs(other) < infinite) for one, other in pairs), pairs
    return max(abs(one - other) / abs(other) for one, other in pairs if abs(other) < infinite)
