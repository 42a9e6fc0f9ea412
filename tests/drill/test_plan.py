"""``rb bench plan``: FLOPs, saved bytes and peak memory of real micro-batches of a medium model and of the toy, beside the plan's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("what", "samples"),
    [
        pytest.param(("--size", "medium_opt"), "2", id="medium_opt"),
        pytest.param(("--size", "medium_t5"), "2", id="medium_t5"),
        # Its micro-batch of the demo. With 2 samples it needs 10 MB, and 1.5 MB of pages that a process takes at any size are more than a tenth.
        pytest.param(("--run", "toy_opt"), "8", id="toy_opt"),
        pytest.param(("--run", "toy_opt", "train.activation_checkpointing=true"), "8", id="toy_opt, checkpointing"),
    ],
)
def test_the_plan_is_within_its_bounds(what: tuple[str, str], samples: str) -> None:
    command = [
        sys.executable,
        "-m",
        "rb.cli",
        "bench",
        "plan",
        *what,
        "--micro-batch",
        samples,
        "--device",
        "cpu",
        "--json",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    for modality, figures in json.loads(output)["modalities"].items():
        assert figures["GFLOP"]["ratio"] == pytest.approx(1, rel=0.01), modality
        for name in ("saved MB", "peak MB"):
            assert figures[name]["ratio"] == pytest.approx(1, rel=0.1), (modality, name)
