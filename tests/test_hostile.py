"""Altered files of every kind through the project's readers, the same ones every time; `make drill` does it for ten minutes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CASES, MOST_MB = 150, 256


@pytest.mark.slow
def test_every_reader_ends_in_a_line_and_takes_little_memory() -> None:
    """A process, so that a reader that dies or takes memory is seen; it raises for anything but a line that names the file."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.hostile", str(CASES), "0", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert len(report) >= 46
    for kind, row in report.items():
        assert row["cases"] == CASES, kind
        assert row["growth_mb"] < MOST_MB, (kind, row)
    # The alterations bite: most files are refused, in every kind whose reader does not read around damage.
    tolerant = ("journal", "CSV", "table", "entity sentences")
    assert all(row["refused"] > CASES / 2 for kind, row in report.items() if kind not in tolerant)
