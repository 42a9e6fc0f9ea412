"""What is known of a job that hangs, in `RUN_DIR/hangs/TIME/`: of every rank its host, phase, step, last sign of progress, samples and stacks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rb.core.files import write_json
from rb.launching.states import NodeState
from rb.launching.verdict import Verdict


def write_report(run_dir: Path, verdict: Verdict, nodes: Sequence[NodeState]) -> Path:
    """Write the report; its folder."""
    folder = run_dir / "hangs" / time.strftime("%Y%m%dT%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", {"verdict": verdict.to_tree(), "nodes": [node.to_tree() for node in nodes]})
    return folder
