"""`rb launch --torchrun` on a node other than the first: starts torchrun with this node's agent, as often as the controller on node 0 starts the job."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from rb.core.exit_codes import NODE_LOST, STOPPED
from rb.core.output import note
from rb.core.strict_json import parse
from rb.launching.agent import RESULT_VARIABLE
from rb.launching.environment import launcher_environment
from rb.launching.job import Wish
from rb.launching.job_file import job_path
from rb.launching.launchers import Launched, torchrun_commands


def follow(run_dir: Path, num_nodes: int, node: int, meeting: tuple[str, int], wish: Wish) -> int:
    """Run this node's agent until the controller says that the job is over; returns the job's exit code."""
    with tempfile.TemporaryDirectory(prefix="rb-agent-") as folder:
        result = Path(folder) / "result.json"
        while True:
            result.unlink(missing_ok=True)
            environment = launcher_environment(os.environ) | {RESULT_VARIABLE: str(result)}
            launched = Launched(torchrun_commands(job_path(run_dir, "job"), num_nodes, node, *meeting), environment)
            asked = False
            while not launched.ended():
                if wish.look() and not asked:
                    asked = True
                    launched.ask()
                time.sleep(0.2)
            launched.end()
            try:
                said = parse(result.read_bytes(), str(result))
            except (OSError, ValueError):
                said = {"code": STOPPED if wish.look() else NODE_LOST, "again": False}
            if not said["again"] or wish.look():
                return int(said["code"])
            note("rb launch: the controller starts the job again")
