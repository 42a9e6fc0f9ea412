"""A rank without torch, for tests of launchers: says what it was given, and waits until it is asked to stop.

usage: python -m tests.support.rank_probe FOLDER
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from rb.core.exit_codes import STOPPED
from rb.core.stopping import StopRequest

GIVEN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR")


def main(folder: Path) -> int:
    """STOPPED once it is asked to stop."""
    stop = StopRequest()
    stop.start_steps()
    rank = os.environ["RANK"]
    given = {name: os.environ.get(name) for name in GIVEN} | {"pid": os.getpid()}
    (folder / f"{rank}.tmp").write_text(json.dumps(given))
    (folder / f"{rank}.tmp").rename(folder / f"rank{rank}.json")
    while not stop.reason:
        time.sleep(0.05)
    return STOPPED


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[-1])))
