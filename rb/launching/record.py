"""Who is to blame for a hang where beats do not tell: by what ranks write behind their stacks when they are asked (`rb/train.py`). Pure.

DeepSpeed reduces gradients within the backward pass, which counts as one collective in the beats. Two ranks that are both in it look the same, though
one of them may loop there for ever and the other wait in its reduction. Torch's own record counts these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rb.core.heartbeat import BEGUN
from rb.core.strict_json import parse
from rb.launching.states import NodeState
from rb.launching.verdict import UNKNOWN, Culprit, Verdict


def name_culprits(verdict: Verdict, nodes: Sequence[NodeState]) -> Verdict:
    """The verdict with the ranks that are behind by torch's record; as it is, where it names some or the record does not tell.

    Args:
        verdict: on a hang.
        nodes: with the stacks of those ranks that answered.
    """
    if verdict.culprits:
        return verdict
    stacks = {rank: text for node in nodes for rank, text in node.stacks.items()}
    behind = ranks_behind(stacks)
    found = [(node, state) for node in nodes for state in node.ranks if state.rank in behind]
    if not found:
        return verdict
    who = ", ".join(f"rank {state.rank} on {node.host}" for node, state in found)
    culprits = tuple(Culprit(node.node, node.host, state.rank) for node, state in found)
    return replace(verdict, culprits=culprits, sentence=verdict.sentence.replace(UNKNOWN, who))


def has_record(stacks: str) -> bool:
    """Whether a rank has written its record behind its stacks."""
    return BEGUN in stacks


def ranks_behind(stacks: Mapping[int, str]) -> list[int]:
    """Ranks that wrote stacks and no record, since something keeps Python from running there; else those that have begun the fewest collectives of a group.

    Empty where all look the same, or where none wrote a record.
    """
    begun = {rank: _begun(text) for rank, text in stacks.items()}
    known = {rank: groups for rank, groups in begun.items() if groups is not None}
    if not known:
        return []
    if len(known) < len(begun):
        return sorted(begun.keys() - known.keys())
    for group in sorted(set.intersection(*(set(groups) for groups in known.values()))):
        least = min(groups[group] for groups in known.values())
        behind = sorted(rank for rank, groups in known.items() if groups[group] == least)
        if len(behind) < len(known):
            return behind
    return []


def _begun(text: str) -> dict[str, int] | None:
    lines = [line.removeprefix(BEGUN) for line in text.splitlines() if line.startswith(BEGUN)]
    try:
        found = parse(lines[-1], "record") if lines else None
    except ValueError:
        return None
    return found if isinstance(found, dict) and all(type(number) is int for number in found.values()) else None
