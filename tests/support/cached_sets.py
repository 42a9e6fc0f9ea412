"""A small run of images and clouds for the tests of sets that are made from sets: features and groups in place of what is computed at every step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rb.cli import main
from rb.core.config import FoundationConfig
from rb.core.modality import IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION
from rb.core.run_file import to_tree
from rb.core.run_paths import open_run
from rb.data.pipeline import open_training_data
from rb.model.weights.build import build_model
from rb.training.batches import training_batches
from rb.training.schedule import Schedule
from tests.support import tiny
from tests.support.small_data import NUM_POINTS

STEPS = 20
MODALITIES = (IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION)


@dataclass(frozen=True)
class World:
    """A folder with a set of each modality under its name; what is made of them is in folders beside these."""

    folder: Path
    foundation: FoundationConfig

    def run_file(self, name: str, sets: str = "", more: dict[str, Any] | None = None) -> Path:
        """A run of 20 steps; ``sets``: the folder of the sets it lists. ``more``: sections, merged key by key."""
        model = tiny.model_config(self.foundation, train_modalities=MODALITIES, num_points=NUM_POINTS)
        tree: dict[str, Any] = {
            "name": name,
            "output_dir": str(self.folder / "runs"),
            "model": to_tree(model),
            "data": {
                "train": {m: [{"manifest": str(self.folder / sets / m)}] for m in MODALITIES},
                "augment": False,
                "num_workers": 0,
            },
            "optim": {"lr": 1e-3, "warmup_steps": 3},
            "train": {
                "global_batch_size": 4,
                "micro_batch_size": 2,
                "max_steps": STEPS,
                "log_every": 1,
                "ds_config": "ds_configs/zero2_cpu.json",
                "num_threads": 1,
            },
            "tracking": {"mlflow": False},
        }
        for section, values in (more or {}).items():
            tree[section] = {**tree.get(section, {}), **values}
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    def cache(self, modality: str, out: Path, *options: str, command: str = "cache-features") -> int:
        """The command."""
        words = [
            command,
            str(self.folder / modality),
            "--run",
            str(self.folder / "plain.yaml"),
            "--device",
            "cpu",
        ]
        return main([*words, "--out", str(out), "--workers", "2", "--batch-size", "2", *options])


def batches(world: World, sets: str, more: dict[str, Any] | None = None) -> tuple[Any, list[Any]]:
    """The model of a run, and the batches of its first six steps."""
    config = open_run(world.run_file("direct", sets, more))
    data = open_training_data(config.data.train, config.seed)
    built = build_model(config.model, config.seed)
    samples = {modality: len(data[modality].stream) for modality in config.train.in_order(data)}
    schedule = Schedule(config.train.schedule, samples, 4, config.seed)
    return built.model, list(training_batches(config, built, data, schedule, config.train.layout(1), 0, range(6)))
