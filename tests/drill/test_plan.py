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
    "what", [("--size", "medium_opt"), ("--size", "medium_t5"), ("--run", "toy_opt")], ids=lambda what: what[1]
)
def test_the_plan_is_within_its_bounds(what: tuple[str, str]) -> None:
    command = [
        sys.executable,
        "-m",
        "rb.cli",
        "bench",
        "plan",
        *what,
        "--micro-batch",
        "2",
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
