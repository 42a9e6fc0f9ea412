"""What is wrong with a running job, judged from the states of its nodes and ranks; pure: no clock, no files, no processes.

The controller asks `judge` after every look at the nodes, and acts on what it says: ends everything (ENDED, LOST, HANG) or asks everybody to stop
(STOP). Silence and ends are judged by the time that has passed since, which the states hold.

Who is to blame for a hang: a rank waits in a collective because another one has not come, so the one to name is a stopped process; else who
is in no collective while others wait in one; else who has begun the fewest; else who made the fewest steps. Where all are the same, it is not known which,
until the ranks have written what torch knows of them (`record.py`).
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rb.core.config import LimitsConfig
from rb.core.exit_codes import ABORTED, CANNOT_WRITE, FINISHED, HUNG, NODE_LOST, STOPPED, WRONG_REQUEST
from rb.core.heartbeat import END, SAVING, START, TRAINING, VALIDATION
from rb.launching.states import NodeState, RankState

ENDED, LOST, HANG, STOP = KINDS = ("rank ended", "node lost", "hang", "stop")
GRACE_S = 5.0  # after the first rank ended with a code: the others leave by themselves where all agreed to (`rb/training/agree.py`)
TOGETHER_S = 2.0  # ends that are closer than this count as one moment: which came first cannot be seen
QUIET_S = 3.0  # a node that is silent this long may be lost: its ranks' end is not the others' fault
UNKNOWN = "not known which rank, all look the same"  # in the sentence of a hang without culprits
_SAID = (ABORTED, CANNOT_WRITE, WRONG_REQUEST)  # codes that a rank leaves with after a line that says why
_EARLY = 128 + signal.SIGTERM  # of a rank that was asked to stop before Python had started in it


@dataclass(frozen=True)
class Culprit:
    """Where it went wrong; a rank of a node, or a whole node."""

    node: int
    host: str
    rank: int | None = None


@dataclass(frozen=True)
class Verdict:
    """What is wrong, and what the job ends with."""

    code: int
    """Exit code of the job: HUNG, NODE_LOST, STOPPED, or that of the rank that ended first."""
    kind: str
    """One of KINDS."""
    sentence: str
    """For people, one line."""
    culprits: tuple[Culprit, ...] = ()
    """Empty where it is not known which."""
    phase: str = ""
    """Of the culprits; empty where it is not known."""
    step: int = -1
    """Optimizer steps that they had made; -1 before the first is begun, or where it is not known."""

    def to_tree(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class _Place:
    """A rank with its node."""

    node: NodeState
    state: RankState

    @property
    def culprit(self) -> Culprit:
        return Culprit(self.node.node, self.node.host, self.state.rank)

    @property
    def phase(self) -> str:
        return self.state.beat.phase if self.state.beat else START

    @property
    def step(self) -> int:
        return self.state.beat.step if self.state.beat else -1

    @property
    def collectives(self) -> int:
        return self.state.beat.collectives if self.state.beat else 0

    @property
    def waits_in(self) -> str:
        return self.state.beat.waits_in if self.state.beat else ""

    def __str__(self) -> str:
        return f"rank {self.state.rank} on {self.node.host}"


def judge(nodes: Sequence[NodeState], limits: LimitsConfig) -> Verdict | None:
    """What is wrong with the job now; none where nothing is, or where it is too early to say.

    A job whose ranks have all ended with 0 or 75 has no verdict: nothing is left to do.
    """
    places = [_Place(node, state) for node in nodes for state in node.ranks]
    lost = _lost(nodes, limits)
    if lost or _ended_badly(places):  # what hangs then, hangs because of it
        return lost or _ended(nodes, places)
    return _not_started(nodes, limits) or _write_hung(places, limits) or _hung(places, limits) or _stop(nodes, places)


def limit_s(phase: str, limits: LimitsConfig) -> tuple[str, float]:
    """The longest silence of a rank in a phase, with the name of its field."""
    fields = {START: "start_s", TRAINING: "training_s", VALIDATION: "validation_s", SAVING: "saving_s", END: "saving_s"}
    return f"limits.{fields[phase]}", getattr(limits, fields[phase])


def _lost(nodes: Sequence[NodeState], limits: LimitsConfig) -> Verdict | None:
    """A node that is not there any more, while it had something to do."""
    busy = [node for node in nodes if not node.ranks or any(state.code is None for state in node.ranks)]
    lost = [node for node in busy if node.gone or node.silent_s > limits.node_s]
    if not lost:
        return None
    said = [
        f"{node.host}: {node.gone}" if node.gone else f"{node.host}: silent for {node.silent_s:.0f} s (limits.node_s is {limits.node_s:g})"
        for node in lost
    ]  # fmt: skip
    first = [_Place(lost[0], state) for state in lost[0].ranks[:1]]
    return Verdict(
        NODE_LOST,
        LOST,
        f"node lost: {'; '.join(said)}",
        tuple(Culprit(node.node, node.host) for node in lost),
        first[0].phase if first else START,
        first[0].step if first else -1,
    )


def _ended(nodes: Sequence[NodeState], places: list[_Place]) -> Verdict | None:
    """A rank that ended by a signal, or with a code that is no good end."""
    bad = _ended_badly(places)
    first = max(place.state.ended_s for place in bad)
    cause = min((p for p in bad if p.state.ended_s > first - TOGETHER_S), key=_how_telling)
    code, everyone = cause.state.code, all(place.state.code is not None for place in places)
    assert code is not None
    killed = code > 128 and code != 128 + signal.SIGABRT
    # Where the other ranks only lost their connection, the node that is just falling silent will be the cause.
    waits = any(node.silent_s > QUIET_S for node in nodes) or first < GRACE_S
    if waits and not killed and not everyone:
        return None
    memory = ", as the kernel does where memory is short," if code == 128 + signal.SIGKILL else ""
    how = f"was ended by {_signal_name(code - 128)}{memory}" if code > 128 else f"ended with exit code {code}"
    others = sum(place.state.code is None for place in places)
    rest = f" while {others} of {len(places)} ranks still ran" if others else ""
    sentence = f"{cause} {how} in {cause.phase}{_of_step(cause)}{rest}"
    return Verdict(code, ENDED, sentence, (cause.culprit,), cause.phase, cause.step)


def _ended_badly(places: list[_Place]) -> list[_Place]:
    return [place for place in places if place.state.code not in (None, FINISHED, STOPPED) and not _asked_early(place)]


def _how_telling(place: _Place) -> tuple[int, int]:
    """Of ranks that ended in one moment, whose end says the most: a kill, then a code after words, then what follows from another's end."""
    code = place.state.code or 0
    if code > 128:
        order = 0 if code != 128 + signal.SIGABRT else 3
    else:
        order = 1 if code in _SAID else 2
    return order, place.state.rank


def _not_started(nodes: Sequence[NodeState], limits: LimitsConfig) -> Verdict | None:
    """A node that answers, but has not started its ranks: the others wait for them."""
    late = [node for node in nodes if node.unstarted_s > limits.start_s]
    if not late:
        return None
    hosts = ", ".join(node.host for node in late)
    length = f"has not started its ranks for {max(node.unstarted_s for node in late):.0f} s (limits.start_s is {limits.start_s:g})"
    culprits = tuple(Culprit(node.node, node.host) for node in late)
    return Verdict(HUNG, HANG, f"hang: {hosts}: {length}", culprits, START)


def _write_hung(places: list[_Place], limits: LimitsConfig) -> Verdict | None:
    """A checkpoint that is written beside the steps and gets nowhere."""
    found = [place for place in places if place.state.code is None and place.state.write_silent_s > limits.saving_s]
    if not found:
        return None
    place = found[0]
    length = f"no progress for {place.state.write_silent_s:.0f} s in writing a checkpoint{_of_step(place)} (limits.saving_s is {limits.saving_s:g})"
    doing = f": {_doing(place)}" if place.state.stopped else ""
    return Verdict(HUNG, HANG, f"hang: {place}: {length}{doing}", (place.culprit,), SAVING, place.step)


def _hung(places: list[_Place], limits: LimitsConfig) -> Verdict | None:
    """A rank without progress for longer than its phase allows.

    One that waits in a collective is not to blame as long as another rank still gets somewhere: it waits for that one.
    """
    running = [place for place in places if place.state.code is None]
    stuck = [place for place in running if place.state.silent_s > limit_s(place.phase, limits)[1]]
    alone = [place for place in stuck if not place.waits_in]
    if not stuck or (not alone and len(stuck) < len(running)):
        return None
    found = _to_blame(running, alone, [place for place in places if place.state.code is not None])
    worst = max([place for place in found if place in stuck] or stuck, key=lambda place: place.state.silent_s)
    field, limit = limit_s(worst.phase, limits)
    states = {_doing(place) for place in found}
    doing = f": {states.pop()}" if len(states) == 1 else ""
    who = ", ".join(map(str, found)) if found else UNKNOWN
    waiting = [place for place in running if place.waits_in and place not in found]
    where = sorted({place.waits_in for place in waiting})
    rest = f"; {_ranks(waiting)} in {', '.join(where)}" if waiting else ""
    length = f"no progress for {worst.state.silent_s:.0f} s in {worst.phase}{_of_step(worst)} ({field} is {limit:g})"
    culprits = tuple(place.culprit for place in found)
    return Verdict(HUNG, HANG, f"hang: {who}: {length}{doing}{rest}", culprits, worst.phase, worst.step)


def _to_blame(running: list[_Place], alone: list[_Place], ended: list[_Place]) -> list[_Place]:
    """The ranks that the others wait for, as far as it can be seen; empty where they all look the same.

    Args:
        running: all ranks that have not ended.
        alone: those of them that are silent for too long, and in no collective.
        ended: the rest.
    """
    stopped = [place for place in running if place.state.stopped]
    if stopped:
        return stopped
    if ended and not alone:
        return ended
    behind = _least(alone or running)
    return behind if len(behind) < len(running) or len(running) == 1 else []


def _least(places: list[_Place]) -> list[_Place]:
    """Those that are furthest behind: by collectives begun, then by steps."""
    furthest = min((place.collectives, place.step) for place in places)
    return [place for place in places if (place.collectives, place.step) == furthest]


def _stop(nodes: Sequence[NodeState], places: list[_Place]) -> Verdict | None:
    """Somebody wants the job to stop: an agent was told, or a rank left because it was asked to while it had nothing to save."""
    if all(place.state.code is not None for place in places) and places:
        return None
    for node in nodes:
        if node.asked:
            return Verdict(
                STOPPED, STOP, f"{node.host} was asked to stop: {node.asked}", (Culprit(node.node, node.host),)
            )
    for place in places:
        if place.state.code == STOPPED or _asked_early(place):
            sentence = f"{place} was asked to stop and left in {place.phase}"
            return Verdict(STOPPED, STOP, sentence, (place.culprit,), place.phase, place.step)
    return None


def _asked_early(place: _Place) -> bool:
    return place.state.code == _EARLY and place.state.beat is None


def _doing(place: _Place) -> str:
    if place.state.code is not None:
        return f"it ended with exit code {place.state.code} while the others wait for it"
    if place.state.stopped:
        return "its process is stopped (SIGSTOP or a debugger)"
    if place.waits_in:
        return f"it waits in {place.waits_in}, its number {place.collectives}"
    return "it is in no collective"


def _of_step(place: _Place) -> str:
    return f", {place.step} steps made" if place.step >= 0 else ""


def _ranks(places: list[_Place]) -> str:
    if len(places) == 1:
        return f"rank {places[0].state.rank} waits"
    return f"ranks {', '.join(str(place.state.rank) for place in places)} wait"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
