"""One attempt of a job: its ranks are started on every node, looked at, and ended everywhere when something is wrong anywhere.

The same for one node in this process (`rb train`) and for many with agents (`rb launch`). What counts as wrong is in `verdict.py`.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import Protocol

from rb.core.config import LimitsConfig
from rb.core.exit_codes import FAILED, FINISHED, STOPPED
from rb.core.output import note
from rb.core.stopping import LAUNCHER_ENDED, Parents
from rb.launching.node import Assignment
from rb.launching.record import has_record, name_culprits
from rb.launching.states import NodeState, RankState
from rb.launching.verdict import HANG, LOST, STOP, Verdict, judge

POLL_S = 0.2
STALL_S = 2.0  # between two looks
STACKS_S = 5.0  # for ranks to write their stacks
REST_S = 0.5  # for the end of what they have begun to write
END_S = 15.0  # after ranks were killed: an agent that does not report their end by then is lost


class Member(Protocol):
    """A node as this file uses it: `Node` here, or `RemoteNode`."""

    number: int
    host: str

    def start(self, assignment: Assignment) -> None:
        """Start ranks."""

    def poll(self) -> NodeState:
        """The newest state."""

    def stop(self) -> None:
        """Ask ranks to save and leave."""

    def ask_stacks(self) -> None:
        """Have ranks write their stacks."""

    def stacks(self) -> dict[int, str]:
        """Stacks by rank."""

    def kill(self) -> None:
        """End ranks."""


class Wish:
    """The wish of this process's user, or of who started it, that the job ends. Make it in the main thread; a context manager."""

    def __init__(self) -> None:
        self.reason = ""
        """Why; empty while nobody asked."""
        self.elsewhere: Callable[[], str] = lambda: ""
        """Asked at every look: why somebody told an agent; empty while nobody did."""
        self._parents = Parents(launched=False)

    def look(self) -> str:
        """``reason``, after a look at the process that started this one, and elsewhere."""
        if not self.reason:
            self.reason = "the end of the process that started it" if self._parents.gone() else self.elsewhere()
        return self.reason

    def __enter__(self) -> Wish:
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        self._earlier = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self.reason = self.reason or signal.Signals(number).name


@dataclass(frozen=True)
class Ended:
    """How an attempt ended, as far as its processes say it."""

    code: int
    """Exit code: of the verdict, else of the ranks."""
    verdict: Verdict | None
    """What was wrong; none where nothing was."""
    nodes: tuple[NodeState, ...]
    """The last states."""
    asked: str
    """Why the user, or the job's environment, wanted it to end; empty where nobody did."""

    @property
    def step(self) -> int:
        """Steps made, as the newest beat says; -1 where none was begun."""
        return max((rank.beat.step for node in self.nodes for rank in node.ranks if rank.beat), default=-1)


class Job:
    """One attempt.

    Args:
        members: the nodes, by number.
        num_ranks: of each.
        limits: of silence.
        wish: of the user.
        still_there: asked at every look; a sentence where something the job needs is gone (its launcher), else empty.
        report: called once where ranks hang or a node is lost, with what is known; writes it down.
        own_variables: of each node's ranks.
    """

    def __init__(
        self,
        members: Sequence[Member],
        num_ranks: Sequence[int],
        limits: LimitsConfig,
        wish: Wish,
        still_there: Callable[[], str] = lambda: "",
        report: Callable[[Verdict, Sequence[NodeState]], None] | None = None,
        own_variables: Sequence[Mapping[str, str]] = (),
    ) -> None:
        self._members, self._num_ranks, self._limits = members, num_ranks, limits
        self._wish, self._still_there, self._report = wish, still_there, report
        self._own = list(own_variables) or [{}] * len(members)
        self._asked = ""  # why the user or the environment wants the end
        self._told = False  # ranks were asked to stop

    def run(
        self, module: str, arguments: Sequence[str], address: str, port: int, environment: Mapping[str, str]
    ) -> Ended:
        """Start the ranks and return when all of them have ended, or cannot be seen any more.

        Args:
            module: what a rank runs.
            arguments: of it.
            address: where rank 0 is met, with ``port``.
            port: of rank 0.
            environment: variables of the ranks.

        Raises:
            ValueError: a node cannot start its ranks.
        """
        world, first = sum(self._num_ranks), 0
        for member, count, own in zip(self._members, self._num_ranks, self._own, strict=True):
            variables = {**environment, **own}
            member.start(Assignment(module, tuple(arguments), world, first, count, address, port, variables))
            first += count
        verdict: Verdict | None = None
        looked = time.monotonic()
        while True:
            if (
                time.monotonic() - looked > STALL_S
            ):  # this process stood still; what the nodes sent meanwhile is not read yet
                time.sleep(1.0)
            looked = time.monotonic()
            nodes = [member.poll() for member in self._members]
            self._check_started()
            if self._all_ended(nodes):
                self._asked = self._asked or self._why(nodes)
                break
            self._ask_to_stop(nodes)
            found = judge(nodes, self._limits)
            if found is not None and found.kind == STOP:
                self._tell(found.sentence)
            elif found is not None:
                verdict = found
                verdict, nodes = self._end_all(verdict)
                break
            time.sleep(POLL_S)
        if verdict is None:
            verdict = next((v for v in [judge(nodes, self._limits)] if v is not None and v.kind != STOP), None)
        return Ended(self._code(verdict, nodes), verdict, tuple(nodes), self._asked)

    def _check_started(self) -> None:
        for member in self._members:
            error = getattr(member, "error", "")
            if error:
                for other in self._members:
                    other.kill()
                raise ValueError(f"{member.host}: {error}")

    def _all_ended(self, nodes: Sequence[NodeState]) -> bool:
        return all(
            len(node.ranks) == count and all(rank.code is not None for rank in node.ranks)
            for node, count in zip(nodes, self._num_ranks, strict=True)
        )

    def _ask_to_stop(self, nodes: Sequence[NodeState]) -> None:
        """Pass on the wish of the user, and of whoever told an agent."""
        if why := self._why(nodes):
            self._asked = why
            self._tell(why)
        elif not self._told and any(node.asked for node in nodes):  # its launcher was killed: the job may start again
            self._tell(LAUNCHER_ENDED)
        elif not self._told and (gone := self._still_there()):
            self._tell(gone)

    def _why(self, nodes: Sequence[NodeState]) -> str:
        return self._wish.look() or who_asked(nodes)

    def _tell(self, why: str) -> None:
        """Ask all ranks to stop, once."""
        if not self._told:
            self._told = True
            note(f"stopping ({why}): the ranks save and leave")
            for member in self._members:
                member.stop()

    def _end_all(self, verdict: Verdict) -> tuple[Verdict, list[NodeState]]:
        """Write down what is known, where that helps, and end every rank; the verdict with all that they said, and the last states."""
        # A lost node hears nothing: its agent ends its ranks by itself, and nobody waits for its word.
        lost = {culprit.node for culprit in verdict.culprits} if verdict.kind == LOST else set[int]()
        heard = [member for number, member in enumerate(self._members) if number not in lost]
        if verdict.kind in (HANG, LOST):
            for member in self._members:
                member.ask_stacks()
            _wait(lambda: all(_answered(member) for member in heard), STACKS_S)
            if verdict.kind == HANG and not verdict.culprits:
                _wait(lambda: all(has_record(text) for m in heard for text in m.stacks().values()), STACKS_S)
            time.sleep(REST_S)
            known = [replace(member.poll(), stacks=member.stacks()) for member in self._members]
            verdict = name_culprits(verdict, known) if verdict.kind == HANG else verdict
            if self._report is not None:
                self._report(verdict, known)
        for member in self._members:
            member.kill()
        _wait(lambda: all(_over(member.poll()) for member in heard), END_S)
        return verdict, [member.poll() for member in self._members]

    def _code(self, verdict: Verdict | None, nodes: Sequence[NodeState]) -> int:
        if verdict is not None:
            return verdict.code
        codes = [rank.code for node in nodes for rank in node.ranks]
        if all(code == FINISHED for code in codes):
            return FINISHED
        # What was asked to stop before Python had started in it dies of SIGTERM.
        return STOPPED if self._told and set(codes) <= {FINISHED, STOPPED, 128 + signal.SIGTERM} else _first_bad(nodes)


def who_asked(nodes: Iterable[NodeState]) -> str:
    """Who told which agent that the job should end: ``SIGTERM of node1``; empty where nobody did. The end of its launcher is a fault, no wish."""
    told = (node for node in nodes if node.asked and node.asked != LAUNCHER_ENDED)
    return next((f"{node.asked} of {node.host}" for node in told), "")


def _first_bad(nodes: Sequence[NodeState]) -> int:
    """The exit code of the rank that failed first."""
    bad = [rank for node in nodes for rank in node.ranks if rank.code not in (None, FINISHED)]
    return max(bad, key=lambda rank: rank.ended_s).code or FAILED


def _answered(member: Member) -> bool:
    running = {rank.rank for rank in member.poll().ranks if _can_answer(rank)}
    return running <= member.stacks().keys() or bool(member.poll().gone)


def _can_answer(rank: RankState) -> bool:
    return rank.code is None and rank.beat is not None and not rank.stopped


def _over(node: NodeState) -> bool:
    return bool(node.gone) or all(rank.code is not None for rank in node.ranks)


def _wait(done: Callable[[], bool], seconds: float) -> None:
    end, never = time.monotonic() + seconds, threading.Event()
    while not done() and time.monotonic() < end:
        never.wait(0.1)
