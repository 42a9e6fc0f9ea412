"""What is known of a running job at one moment: every rank as its node sees it, every node as the controller sees it. Data only.

Who uses it: `node.py` makes the states of its ranks, `hub.py` carries them, `verdict.py` judges them, `hang_report.py` writes them down.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rb.core.heartbeat import Beat


@dataclass(frozen=True)
class RankState:
    """One rank, as the agent of its node sees it."""

    rank: int
    pid: int
    code: int | None = None
    """Exit code as a shell shows it (128 + N where signal N ended it); none while it runs."""
    ended_s: float = 0.0
    """Seconds since it ended."""
    stopped: bool = False
    """Whether the process is stopped (SIGSTOP, a debugger)."""
    beat: Beat | None = None
    """Its newest sign of progress; none before the first."""
    silent_s: float = 0.0
    """Seconds since its last sign of progress, or since it was started. While it only waits for its checkpoint, that one's progress is its own."""
    write_silent_s: float = 0.0
    """Seconds since the checkpoint that it writes beside the steps made progress; 0 where it writes none."""


@dataclass(frozen=True)
class NodeState:
    """One node, as the controller sees it."""

    node: int
    host: str
    ranks: tuple[RankState, ...] = ()
    silent_s: float = 0.0
    """Seconds since its agent was heard."""
    unstarted_s: float = 0.0
    """Seconds since its agent was asked to start ranks; 0 once it has."""
    gone: str = ""
    """Why its agent is not there any more ("its agent ended"); empty while it is."""
    asked: str = ""
    """Why somebody wants the job to stop, as its agent was told ("SIGTERM"); empty while nobody does."""
    stacks: dict[int, str] = field(default_factory=dict)
    """Python stacks by rank, once they were asked for."""

    def to_tree(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def rank_from_tree(tree: dict[str, Any]) -> RankState:
    """A rank's state from what ``asdict`` made of it."""
    beat = tree.pop("beat")
    return RankState(**tree, beat=Beat(**beat | {"samples": tuple(beat["samples"])}) if beat else None)
