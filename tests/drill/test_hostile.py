"""Ten minutes of fuzzing: libFuzzer (atheris) looks for files that break a reader (seed: the day, or RB_DRILL_SEED)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 600


def test_ten_minutes_of_fuzzing() -> None:
    """Memory (256 MB of growth) and time (5 s a file) are libFuzzer's limits; it ends with an error where a reader passes one."""
    seed = os.environ.get("RB_DRILL_SEED") or str(int(time.time()) // 86_400)
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.fuzzing", str(SECONDS), seed]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-3000:]}"
    rows = json.loads(done.stdout.splitlines()[-1])
    print(f"seed {seed}, {sum(row['files'] for row in rows):,} files")
    for row in rows:
        first, last = row["coverage"]
        print(
            f"{row['kind']:20} {row['files']:>8,} files, {row['new']:>4} reached new code, branches {first} -> {last}, peak {row['peak_mb']} MB"
        )
        assert last > first, row["kind"]  # the instrumentation sees the reader
