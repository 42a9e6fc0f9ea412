"""The whole of docs/tutorial.md in a new folder, command by command as printed: from 30 photos and ten clouds to captions, by a real small LLM.

Two packages of the page are installed by its own first commands. About five minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.support.tutorial import ROOT, commands

MOST_S = 600  # what the page promises, on 2 cores


def test_every_command_of_the_tutorial_as_printed(tmp_path: Path) -> None:
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    bin_folder = str(Path(sys.executable).parent)
    environment = os.environ | {
        "PATH": os.pathsep.join([bin_folder, os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    whole = time.monotonic()
    for command in commands():
        began = time.monotonic()
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (command, done.stderr[-3000:])
        shown = done.stdout.strip() if command.startswith("rb caption") else ""
        print(f"{time.monotonic() - began:6.1f} s  {command}" + (f"\n          -> {shown!r}" if shown else ""))
        if command.startswith("rb caption"):
            assert shown
        if command.startswith("rb train") and "dry-run" not in command:
            print("\n".join(line for line in done.stderr.splitlines() if "validation" in line))
    seconds = time.monotonic() - whole
    print(f"{seconds:.0f} s in all, {os.cpu_count()} cores")
    assert seconds < MOST_S
