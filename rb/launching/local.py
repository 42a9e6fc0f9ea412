"""Ranks on this host alone, watched by this process: a training by `rb train`, predictions by `rb predict --ranks`."""

from __future__ import annotations

import math
import socket
from collections.abc import Sequence
from pathlib import Path

from rb.core.config import LimitsConfig
from rb.core.output import note
from rb.core.ranks_here import devices_of_ranks, free_port
from rb.launching.ending import Ending
from rb.launching.job import Job, Wish
from rb.launching.node import Node
from rb.training.run_end import ATTEMPT_VARIABLE, new_attempt


def run_here(module: str, run_dir: Path, arguments: Sequence[str], ranks: int | None, limits: LimitsConfig) -> int:
    """Train with ranks on this host until they have ended; returns the exit code, by the run's own end marker.

    Args:
        module: what a rank runs.
        run_dir: the run folder.
        arguments: of the module.
        ranks: how many; none is one for each GPU, or one.
        limits: of silence.

    Raises:
        ValueError: fewer GPUs than ranks.
    """
    count, attempt = len(devices_of_ranks(ranks)), new_attempt()
    node, ending = Node(0, socket.gethostname()), Ending(run_dir, attempt, "rb train")
    try:
        with Wish() as wish:
            job = Job([node], [count], limits, wish, report=ending.report)
            # A free port, so that two runs can share a host.
            ended = job.run(module, arguments, "127.0.0.1", free_port(), {ATTEMPT_VARIABLE: attempt})
            return ending.code(ended)
    finally:
        node.close()


def share_here(module: str, arguments: Sequence[str], ranks: int, command: str) -> int:
    """Let ranks on this host share a work that has no run folder, until they have ended; returns the exit code.

    A rank that dies, and a wish to stop, end all of them. How long they are silent has no limit.

    Args:
        module: what a rank runs.
        arguments: of the module.
        ranks: how many.
        command: of the user, for what is said.

    Raises:
        ValueError: fewer GPUs than ranks.
    """
    count, node = len(devices_of_ranks(ranks)), Node(0, socket.gethostname())
    try:
        with Wish() as wish:
            ended = Job([node], [count], LimitsConfig(*[math.inf] * 5), wish).run(
                module, arguments, "127.0.0.1", free_port(), {}
            )
    finally:
        node.close()
    if ended.verdict and ended.code > 128:  # by a signal: no rank has said why
        note(f"{command}: {ended.verdict.sentence}")
    return ended.code
