"""Whether a sentence about a toy room is true: parses a description and checks it against the room's entry of ``truth.json``.

An entry is that of rb/toy/world/truth.py with ``room`` beside it: the four corners [x, y] of the floor. z is up; left and right run along x,
front and back along y, as seen from the front wall. Works on that entry alone. The rooms are made in rb/toy/world/rooms.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rb.core.boxes import transform_cloud_box
from rb.toy.world.vocabulary import SHAPES, SIZES

SIDE_MARGIN = 0.3  # metres; nearer than that two things are beside each other, and "left" says nothing
NEAR = 1.1  # metres between two centres
CORNER, WALL = 0.85, 0.6  # metres from a centre to the corner, to the wall
SIDES = ("on the left", "on the right", "in the front", "in the back")  # of the room
RELATIONS = ("left of", "right of", "in front of", "in back of", "near")  # another solid
WALLS = ("in the corner", "near the wall")
_AXIS_SIGN = {"left": (0, -1), "right": (0, 1), "front": (1, -1), "back": (1, 1)}
_SOLID = rf"(?:({'|'.join(SIZES)}) )?({'|'.join(SHAPES)})"
_SUBJECT = re.compile(rf"(?:(?:this|there) is )?(?:an?|the) {_SOLID}(?:(?:\.? it)? is (.*)| (.*))?")
_RELATION = re.compile(rf"({'|'.join(RELATIONS)}) the {_SOLID}")
_Item = Mapping[str, Any]
Truth = Mapping[str, Any]


@dataclass(frozen=True)
class Clause:
    """``in the corner``, ``on the left``, or a relation to a solid: ``left of`` ``the small`` ``cone``."""

    kind: str
    size: str | None = None
    shape: str | None = None

    def __str__(self) -> str:
        """As written in a description."""
        return " ".join(word for word in (self.kind, "the" if self.shape else None, self.size, self.shape) if word)


@dataclass(frozen=True)
class Description:
    """``this is a small cube. it is in the corner, left of the cone`` taken apart."""

    shape: str
    size: str | None
    clauses: tuple[Clause, ...]


def parse_description(text: str) -> Description | None:
    """A description; None where it cannot be read in full."""
    plain = re.sub(r" ([.,])", r"\1", " ".join(text.lower().split())).rstrip(". ")
    found = _SUBJECT.fullmatch(plain)
    if found is None:
        return None
    clauses = []
    places = found[3] or found[4]
    for part in places.split(", ") if places else []:
        relation = _RELATION.fullmatch(part)
        if relation:
            clauses.append(Clause(*relation.groups()))
        elif part in (*SIDES, *WALLS):
            clauses.append(Clause(part))
        else:
            return None
    return Description(found[2], found[1], tuple(clauses))


def true_region(text: str, truth: Truth, object_id: str) -> bool:
    """Whether the whole description is true of this object."""
    description = parse_description(text)
    return description is not None and _holds(description, _find(truth, object_id), truth)


def singles_out(text: str, truth: Truth, object_id: str) -> bool:
    """The right-object rule: the whole description is true of this object and of no other object."""
    description, target = parse_description(text), _find(truth, object_id)
    return description is not None and [item for item in truth["objects"] if _holds(description, item, truth)] == [
        target
    ]


def _find(truth: Truth, object_id: str) -> _Item:
    found = [item for item in truth["objects"] if item["object_id"] == object_id]
    if not found:
        known = ", ".join(item["object_id"] for item in truth["objects"])
        raise ValueError(f"no object {object_id!r} in this room; it has {known}")
    return found[0]


def _holds(description: Description, item: _Item, truth: Truth) -> bool:
    return is_kind(item, description.size, description.shape) and all(
        clause_margin(c, item, truth) >= 0 for c in description.clauses
    )


def is_kind(item: _Item, size: str | None, shape: str | None) -> bool:
    """Whether a solid is of a shape, and of the given size, if any."""
    return item["shape"] == shape and size in (None, item["size"])


def clause_margin(clause: Clause, item: _Item, truth: Truth) -> float:
    """By how many metres a clause is true of a solid; negative if it is false.

    A relation must be true for every solid that its words fit, and for at least one.
    """
    place = _centre(item)
    if clause.shape is not None:
        others = [o for o in truth["objects"] if o is not item and is_kind(o, clause.size, clause.shape)]
        return min((_relation_margin(clause.kind, place, _centre(other)) for other in others), default=-np.inf)
    corners = np.array(truth["room"], dtype=np.float64)
    if clause.kind == "in the corner":
        return CORNER - float(np.linalg.norm(corners - place, axis=1).min())
    if clause.kind == "near the wall":
        return WALL - min(_to_segment(place, a, b) for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True))
    axis, sign = _AXIS_SIGN[clause.kind.split()[-1]]
    return sign * float(place[axis] - corners.mean(0)[axis]) - SIDE_MARGIN


def _relation_margin(kind: str, here: tuple[float, float], there: tuple[float, float]) -> float:
    """Of this solid's centre to another's."""
    step = (here[0] - there[0], here[1] - there[1])
    if kind == "near":
        return NEAR - float(np.hypot(*step))
    axis, sign = next(_AXIS_SIGN[word] for word in kind.split() if word in _AXIS_SIGN)
    along, across = sign * step[axis], abs(step[1 - axis])
    return min(along - SIDE_MARGIN, along - across / 2)


def _centre(item: _Item) -> tuple[float, float]:
    x0, y0, _, x1, y1, _ = item["box"]
    return (x0 + x1) / 2, (y0 + y1) / 2


def _to_segment(place: tuple[float, float], a: np.ndarray, b: np.ndarray) -> float:
    share = np.clip((place - a) @ (b - a) / ((b - a) @ (b - a)), 0.0, 1.0)
    return float(np.linalg.norm(place - a - share * (b - a)))


def turned(truth: Truth, matrix: np.ndarray, offset: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """The entry of the same room after x -> matrix @ x + offset ([3, 3] a turn about z, and [3])."""
    shift = np.asarray(offset, dtype=np.float64)
    corners = np.array(truth["room"], dtype=np.float64) @ np.asarray(matrix)[:2, :2].T + shift[:2]
    objects = [{**item, "box": transform_cloud_box(item["box"], matrix, shift)} for item in truth["objects"]]
    return {**truth, "room": corners.tolist(), "objects": objects}
