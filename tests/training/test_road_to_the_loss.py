"""How far it is from `rb train` to a loss: few calls of our own, so that a reader finds the way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import yaml

from rb.core.config import FoundationConfig
from rb.core.loss_terms import LOSS_TERMS
from rb.core.run_file import to_tree
from tests.support import small_data, tiny

ROOT = Path(__file__).resolve().parents[2]
MOST_CALLS = 6


def test_at_most_six_own_calls_lead_from_the_entry_to_each_loss(foundation: FoundationConfig, tmp_path: Path) -> None:
    small_data.write_set(tmp_path / "regions", "image_region", 4)
    run = {
        "output_dir": str(tmp_path),
        "model": to_tree(tiny.model_config(foundation, train_modalities=("image_region",))),
        "data": {"train": {"image_region": [{"manifest": str(tmp_path / "regions")}]}, "num_workers": 0},
        "train": {
            "global_batch_size": 4,
            "micro_batch_size": 4,
            "max_steps": 1,
            "ds_config": f"{ROOT}/ds_configs/zero2_cpu.json",
            "num_threads": 1,
        },
        "tracking": {"mlflow": False},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    command = [sys.executable, "-m", "tests.support.road_worker", str(tmp_path / "run.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    roads = json.loads(done.stdout.splitlines()[-1])
    assert roads.keys() == LOSS_TERMS.keys()
    for road in roads.values():
        assert road[0] == "train.py:main"
        assert len(road) - 1 <= MOST_CALLS, " > ".join(road)
