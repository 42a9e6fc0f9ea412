"""``rb bench watching`` on a tiny run: it measures the real loop. The drill `costs` holds the 2 % on a toy run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from rb.core.config import FoundationConfig
from rb.core.run_file import to_tree
from tests.support import small_data, tiny
from tests.support.processes import finish, start


@pytest.mark.dist
def test_costs_of_a_tiny_step(foundation: FoundationConfig, tmp_path: Path) -> None:
    small_data.write_set(tmp_path / "clouds", "point_cloud", 4)
    tree = {
        "output_dir": str(tmp_path / "runs"),
        "model": to_tree(tiny.model_config(foundation)) | {"train_modalities": ["point_cloud"]},
        "data": {"train": {"point_cloud": [{"manifest": str(tmp_path / "clouds")}]}, "num_workers": 0},
        "train": {"global_batch_size": 1, "micro_batch_size": 1, "ds_config": "ds_configs/zero2_cpu.json"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    output = finish(start("rb.cli", "bench", "watching", "--run", tmp_path / "run.yaml", "--steps", 3, "--json"))
    costs = json.loads(output[output.index("{\n") :])
    assert costs["steps"] == 3
    assert costs["step_ms"] > costs["between_ms"] > 0
    assert costs["percent"] == pytest.approx(100 * (costs["beats_ms"] + costs["between_ms"]) / costs["step_ms"])
    assert not (tmp_path / "runs").exists()
