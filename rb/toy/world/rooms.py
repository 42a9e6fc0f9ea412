"""Toy rooms: solids on a floor with low walls, as point clouds in metres, z up; and descriptions that identify one of the solids.

Pure functions of (seed, split, index). Often several of one kind stand in a room, so that a description needs a size or a place. A
description stays true, and still fits no other solid, when the room is turned about z as far as training turns it. Whether a sentence is true
is in rb/toy/world/room_truth.py, the raw files in rb/toy/raw/rooms.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from rb.core import seeding
from rb.toy.world.room_truth import RELATIONS, SIDES, WALLS, Clause, clause_margin, is_kind, turned
from rb.toy.world.scenes import ToyObject
from rb.toy.world.solids import half_extent, surface
from rb.toy.world.truth import scene_truth
from rb.toy.world.vocabulary import SHAPES, SIZES

ROOM_POINTS = 1280
FLOOR, WALL = 0, 1  # instances of the points that belong to no solid; the k-th solid is instance 2 + k
WALL_HEIGHT = 0.15  # metres: a skirting, so that most groups of points lie on solids
_ROOM_SIDE = (2.6, 3.4)  # metres
_RADIUS = {"small": (0.20, 0.24), "big": (0.36, 0.42)}  # metres
_FLOOR_SHARE, _WALL_SHARE = 0.2, 0.1  # of the points
_REPEAT = 0.4  # share of solids made of the same shape as an earlier one
_WORDY = 0.75  # share of descriptions with a place that they do not need
_SLACK = 0.04  # metres by which a description is true of its solid and false of the others
_TURNS = np.deg2rad((-5.2, -2.6, 0.0, 2.6, 5.2))  # the augmentation turns by at most 5 degrees


@dataclass(frozen=True)
class ToyRoom:
    """Points [N, 3] float32 in metres at a raw offset, the instance of each [N], the solids, and the floor's four corners [x, y]."""

    room_id: str
    split: str
    seed: int
    points: np.ndarray
    instances: np.ndarray
    objects: tuple[ToyObject, ...]
    corners: tuple[tuple[float, float], ...]

    @cached_property
    def views(self) -> tuple[_View, ...]:
        """The room as training may turn it: one set for the descriptions of all its solids."""
        return tuple(_View(room_truth(self), float(angle)) for angle in _TURNS)


def make_room(seed: int, split: str, index: int, num_points: int = ROOM_POINTS) -> ToyRoom:
    """Room ``index`` of a split: 3 to 6 solids, both sizes among them."""
    rng = seeding.generator("toy room", seed, split, index)
    room_id = f"{split}-{index:06d}"
    width, depth = rng.uniform(*_ROOM_SIDE, size=2)
    count = int(rng.integers(3, 7))
    sizes = [*SIZES, *(SIZES[int(k)] for k in rng.integers(2, size=count - 2))]
    placed: list[tuple[str, str, float, np.ndarray]] = []
    for _ in range(400):
        if len(placed) == count:
            break
        size = sizes[len(placed)]
        radius = float(rng.uniform(*_RADIUS[size]))
        shape = SHAPES[int(rng.integers(3))]
        if placed and rng.random() < _REPEAT:
            shape = placed[int(rng.integers(len(placed)))][0]
        place = np.array([rng.uniform(radius, width - radius), rng.uniform(radius, depth - radius), 0.0])
        place[2] = half_extent(shape, radius)[1]
        if all(np.hypot(*(place - other[3])[:2]) > 1.2 * (radius + other[2]) for other in placed):
            placed.append((shape, size, radius, place))
    assert len(placed) >= 3, room_id
    offset = np.array([*rng.uniform(-2.0, 2.0, size=2), rng.uniform(-0.1, 0.1)])
    parts = [_floor(width, depth, round(_FLOOR_SHARE * num_points), rng)]
    parts.append(_walls(width, depth, round(_WALL_SHARE * num_points), rng))
    left = num_points - sum(map(len, parts))
    areas = np.array([radius**2 for _, _, radius, _ in placed])
    shares = 0.1 + (1 - 0.1 * len(placed)) * areas / areas.sum()
    edges = np.round(np.cumsum(shares) / shares.sum() * left).astype(int)
    objects = []
    for k, (shape, size, radius, place) in enumerate(placed):
        own = int(edges[k]) - (int(edges[k - 1]) if k else 0)
        # The solids are made with y up.
        parts.append(surface(shape, own, rng)[:, [0, 2, 1]] * radius + place)
        half_w, half_h = half_extent(shape, radius)
        half = np.array([half_w, half_w, half_h])
        box = tuple(float(v) for v in (*(place - half + offset), *(place + half + offset)))
        objects.append(ToyObject(str(k + 2), shape, None, size, box, tuple(float(v) for v in place + offset)))
    points = np.concatenate(parts) + offset + rng.normal(scale=0.004, size=(num_points, 3))
    instances = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    order = rng.permutation(num_points)
    x, y = float(offset[0]), float(offset[1])
    corners = ((x, y), (x + width, y), (x + width, y + depth), (x, y + depth))
    rounded = tuple((float(a), float(b)) for a, b in corners)
    return ToyRoom(room_id, split, seed, points[order].astype(np.float32), instances[order], tuple(objects), rounded)


def _floor(width: float, depth: float, count: int, rng: np.random.Generator) -> np.ndarray:
    return np.stack([rng.uniform(0, width, count), rng.uniform(0, depth, count), np.zeros(count)], axis=1)


def _walls(width: float, depth: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """Points along the floor's edge, up to the walls' height."""
    along = rng.uniform(0, 2 * (width + depth), count)
    x = np.clip(along, 0, width) - np.clip(along - width - depth, 0, width)
    y = np.clip(along - width, 0, depth) - np.clip(along - 2 * width - depth, 0, depth)
    return np.stack([x, y, rng.uniform(0, WALL_HEIGHT, count)], axis=1)


def room_truth(room: ToyRoom) -> dict[str, Any]:
    """The room's entry of ``truth.json``."""
    return {**scene_truth(room), "room": [list(corner) for corner in room.corners]}


def descriptions(room: ToyRoom, item: ToyObject, count: int = 3) -> list[str]:
    """What people would say to point at one solid: the shortest that singles it out, often with one place more than needed.

    ``this is a ball`` where it is the only one, ``this is a small cube. it is in the corner, left of the cone`` where nothing less will do. Empty where
    no description of at most two places singles it out.
    """
    truth, views, own = room_truth(room), room.views, item.object_id
    sayable = [clause for clause in _clauses(truth, own) if all(view.margin(clause, own) >= _SLACK for view in views)]
    rivals = {
        size: [
            o["object_id"]
            for o in truth["objects"]
            if o["object_id"] != item.object_id and is_kind(o, size, item.shape)
        ]
        for size in (None, item.size)
    }
    excludes = {
        clause: {
            o["object_id"]
            for o in truth["objects"]
            if all(view.margin(clause, o["object_id"]) <= -_SLACK for view in views)
        }
        for clause in sayable
    }
    options: list[tuple[str | None, tuple[Clause, ...]]] = []
    for cost in range(4):
        for size in (None, item.size):
            chosen = combinations(sayable, cost - (size is not None)) if cost >= (size is not None) else ()
            options += [
                (size, clauses)
                for clauses in chosen
                if len(clauses) <= 2 and all(any(r in excludes[c] for c in clauses) for r in rivals[size])
            ]
        if options:
            break
    return [_say(room, item, options, sayable, k) for k in range(count)] if options else []


def _say(
    room: ToyRoom,
    item: ToyObject,
    options: Sequence[tuple[str | None, tuple[Clause, ...]]],
    sayable: Sequence[Clause],
    k: int,
) -> str:
    rng = seeding.generator("toy description", room.seed, room.room_id, item.object_id, k)
    size, clauses = options[int(rng.integers(len(options)))]
    more = [clause for clause in sayable if clause not in clauses]
    if len(clauses) < 2 and more and rng.random() < _WORDY:
        clauses = (*clauses, more[int(rng.integers(len(more)))])
    # Places of the room before places beside other solids: one order is easier to learn.
    ordered = sorted(clauses, key=lambda clause: (clause.shape is not None, str(clause)))
    places = ", ".join(map(str, ordered))
    named = f"this is a {f'{size} ' if size else ''}{item.shape}"
    return f"{named}. it is {places}" if places else named


def _clauses(truth: dict[str, Any], object_id: str) -> list[Clause]:
    """All clauses about a solid's place; other solids are named only by words that fit exactly one of them."""
    found = [Clause(kind) for kind in (*WALLS, *SIDES)]
    others = [o for o in truth["objects"] if o["object_id"] != object_id]
    for other in others:
        for size in (None, other["size"]):
            if sum(is_kind(o, size, other["shape"]) for o in truth["objects"]) == 1:
                found += [Clause(kind, size, other["shape"]) for kind in RELATIONS]
                break
    return found


class _View:
    """A room turned by an angle."""

    def __init__(self, truth: dict[str, Any], angle: float) -> None:
        cos, sin = np.cos(angle), np.sin(angle)
        self._truth = turned(truth, np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]]), np.zeros(3))
        self._items = {item["object_id"]: item for item in self._truth["objects"]}
        self._margins: dict[tuple[Clause, str], float] = {}  # descriptions of several solids ask the same

    def margin(self, clause: Clause, object_id: str) -> float:
        """By how many metres a clause is true of a solid here; negative if it is false."""
        key = (clause, object_id)
        if key not in self._margins:
            self._margins[key] = clause_margin(clause, self._items[object_id], self._truth)
        return self._margins[key]
