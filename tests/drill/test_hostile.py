"""Altered files of every kind through the project's readers for ten minutes, other ones each time (seed: the day, or RB_DRILL_SEED)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS, MOST_MB, MOST_S = 600, 256, 2.0


def test_ten_minutes_of_altered_files() -> None:
    seed = os.environ.get("RB_DRILL_SEED") or str(int(time.time()) // 86_400)
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.hostile", "100", str(SECONDS), seed]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-3000:]}"
    report = json.loads(done.stdout.splitlines()[-1])
    print(f"seed {seed}, {sum(row['cases'] for row in report.values()):,} files")
    for kind, row in report.items():
        print(
            f"{kind:16} {row['cases']:>9,} files {row['refused']:>9,} refused, slowest {row['slowest_s']:.2f} s, growth {row['growth_mb']} MB"
        )
        assert row["growth_mb"] < MOST_MB, kind
        assert row["slowest_s"] < MOST_S, kind
