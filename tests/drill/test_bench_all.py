"""``rb bench all --small`` as a user types it: every part is a process, a report and a line of the table; only the parts of a GPU alone do not run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from rb.core.strict_json import read

ROOT = Path(__file__).parents[2]
PARTS = ["check", "score", "generate", "step, groups of 1", "step, groups of 4", "data"]


def test_every_part_has_figures(tmp_path: Path) -> None:
    out = tmp_path / "all.json"
    command = [sys.executable, "-m", "rb.cli", "bench", "all", "--small", "--baseline", "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--minutes", "30", "--out", str(out)], env=environment, capture_output=True, text=True, check=False
    )
    tree = read(out)
    assert {name: part["not_run"] for name, part in tree["parts"].items() if "not_run" in part} == {}
    assert done.returncode == 0, done.stderr
    found = {name: part["found"] for name, part in tree["parts"].items()}
    assert list(found) == PARTS
    assert all(one["ok"] for one in found["check"]["models"]["small_t5"]["compared"])
    assert found["score"]["cpu_seconds"].keys() >= {"tokeniser", "CIDEr"}
    assert found["score"]["java_starts"] == {}
    assert found["generate"]["texts_that_differ"] == 0
    assert found["step, groups of 4"]["modalities"]["image_region"]["ratios"]["executed"] > 1
    assert min(tree["loader_cores_for_the_fastest_step"].values()) > 0
    head, *rows = [line for line in done.stdout.splitlines() if "written" not in line]
    assert head.split()[:2] == ["model", "modality"]
    ways = {tuple(row.split()[:5]) for row in rows}
    assert len(rows) == len(ways) == 12, json.dumps(rows)  # three modalities, two sizes of groups, two ways
    assert ("small_opt", "image_region", "8", "4", "LAVIS's") in ways
