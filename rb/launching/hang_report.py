"""What is known of a job that hangs or has lost a node, written down before its ranks are ended: `RUN_DIR/hangs/TIME/`.

`report.json` has everything, `report.txt` is for people: the verdict in one line, then of every rank its host, phase, step, last sign of progress,
the collective that it waits in, the samples of its step, and what it wrote when it was asked: its Python stacks, and the newest collectives by
torch's own record (`dist.recent_collectives`). The folder is whole or not there. Nothing of ours reads it again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rb.core.files import whole_folder, write_json, write_whole
from rb.core.run_layout import RUN_HANGS
from rb.launching.states import NodeState, RankState
from rb.launching.verdict import Verdict

FORMAT = 1
_SHOWN_SAMPLES = 16  # in the text; report.json has all


def write_report(run_dir: Path, verdict: Verdict, nodes: Sequence[NodeState]) -> Path:
    """Write the report; its folder.

    Args:
        run_dir: the run folder; made where it is missing, as in start-up.
        verdict: what is wrong.
        nodes: the newest states, with the stacks of those ranks that answered.

    Raises:
        OSError: it cannot be written.
    """
    hangs = run_dir / RUN_HANGS
    hangs.mkdir(parents=True, exist_ok=True)
    when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    folder = _free_name(hangs, time.strftime("%Y%m%dT%H%M%S"))
    tree = {"format": FORMAT, "time": when, "verdict": verdict.to_tree(), "nodes": [node.to_tree() for node in nodes]}
    with whole_folder(folder) as temporary:
        write_json(temporary / "report.json", tree)
        write_whole(temporary / "report.txt", describe(when, verdict, nodes))
    return folder


def describe(when: str, verdict: Verdict, nodes: Sequence[NodeState]) -> str:
    """The report for people."""
    lines = [f"{when}  {verdict.sentence}", ""]
    for node in nodes:
        state = node.gone or f"heard {node.silent_s:.1f} s ago"
        lines.append(f"node {node.node}, {node.host}: {state}")
        lines += [f"  {_of_rank(rank)}" for rank in node.ranks]
    answered = [(node, rank) for node in nodes for rank in node.ranks if rank.rank in node.stacks]
    silent = [str(rank.rank) for node in nodes for rank in node.ranks if rank.rank not in node.stacks]
    if silent:
        lines += [
            "",
            f"No stacks from ranks {', '.join(silent)}: stopped, ended, out of reach, or without a beat so far.",
        ]
    for node, rank in answered:
        lines += ["", f"=== rank {rank.rank} on {node.host}", "", node.stacks[rank.rank].rstrip("\n")]
    return "\n".join(lines) + "\n"


def _of_rank(rank: RankState) -> str:
    if rank.code is not None:
        return f"rank {rank.rank} (process {rank.pid}): ended with {rank.code}, {rank.ended_s:.1f} s ago"
    process = f"rank {rank.rank} (process {rank.pid}): {'stopped, ' if rank.stopped else ''}"
    if rank.beat is None:
        return f"{process}no sign of progress since its start, {rank.silent_s:.1f} s ago"
    beat = rank.beat
    where = f"in {beat.waits_in}" if beat.waits_in else "in no collective"
    step = f"{beat.step} steps made" if beat.step >= 0 else "no step begun"
    text = f"{process}{beat.phase}, {step}, {where} ({beat.collectives} begun), last progress {rank.silent_s:.1f} s ago"
    if rank.write_silent_s:
        text += f"; writes a checkpoint, whose last progress was {rank.write_silent_s:.1f} s ago"
    if beat.samples:
        more = f" and {len(beat.samples) - _SHOWN_SAMPLES} more" if len(beat.samples) > _SHOWN_SAMPLES else ""
        text += f"; samples {', '.join(beat.samples[:_SHOWN_SAMPLES])}{more}"
    return text


def _free_name(parent: Path, name: str) -> Path:
    """``name``, or one behind it where another report of this second has it."""
    tried, number = parent / name, 1
    while tried.exists():
        number += 1
        tried = parent / f"{name}_{number}"
    return tried
