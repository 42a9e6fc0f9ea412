"""Whether a sentence about a toy scene is true: parses a caption and checks it against the scene's side file ``truth.json``.

``truth.json`` = {scene id: {"width", "height", "objects": [{"object_id", "shape", "colour", "size", "box"}]}}; of a cloud, colour, width and
height are null. Works on that file alone, so that predictions can be checked without the world that made them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rb.toy.world.vocabulary import COLOURS, HORIZONTAL, SHAPES, SIZES, VERTICAL

MARGIN = 5.0  # pixels; nearer than that two things are beside each other, and "left" says nothing
_FILLERS = ("a", "an", "the")
Truth = Mapping[str, Any]  # one scene's entry of truth.json


@dataclass(frozen=True)
class Phrase:
    """``left small red cube`` in parts; parts that are missing are None or empty."""

    shape: str
    colour: str | None
    size: str | None
    places: tuple[str, ...]


class _HasObjects(Protocol):
    """A ``ToyScene`` or ``ToyCloud`` (rb/toy/world/scenes.py, which imports this file)."""

    @property
    def objects(self) -> Sequence[Any]: ...


def scene_truth(scene: _HasObjects) -> dict[str, Any]:
    """The entry of ``truth.json`` for a scene or a cloud."""
    return {
        "width": getattr(scene, "width", None),
        "height": getattr(scene, "height", None),
        "objects": [
            {"object_id": o.object_id, "shape": o.shape, "colour": o.colour, "size": o.size, "box": list(o.box)}
            for o in scene.objects
        ],
    }


def parse_phrase(text: str) -> Phrase | None:
    """One phrase; None if a word is unknown, repeated or contradicts another, or no shape is named."""
    words = [word for word in text.split() if word not in _FILLERS]
    shapes = [word for word in words if word in SHAPES]
    colours = [word for word in words if word in COLOURS]
    sizes = [word for word in words if word in SIZES]
    places = tuple(word for word in words if word in (*HORIZONTAL, *VERTICAL))
    if len(shapes) + len(colours) + len(sizes) + len(places) != len(words):
        return None
    if len(shapes) != 1 or max(len(colours), len(sizes)) > 1:
        return None
    if any(sum(word in axis for word in places) > 1 for axis in (HORIZONTAL, VERTICAL)):
        return None
    return Phrase(shapes[0], colours[0] if colours else None, sizes[0] if sizes else None, places)


def parse_caption(caption: str) -> list[Phrase] | None:
    """The phrases of ``a, b and c``; None if one of them cannot be read."""
    phrases = [parse_phrase(part) for part in re.split(r",|\band\b", caption.lower().rstrip(". ")) if part.strip()]
    found = [p for p in phrases if p is not None]
    return found if found and len(found) == len(phrases) else None


def true_whole(caption: str, truth: Truth) -> bool:
    """Whether every phrase is true of something in the scene."""
    return bool(fits := _fits(caption, truth)) and all(fits)


def true_counted(caption: str, truth: Truth) -> bool:
    """Whether the phrases are true of different objects: "a red cube and a red cube" needs two of them. Harder than ``true_whole``."""
    fits = _fits(caption, truth)
    return bool(fits) and _assign(fits, frozenset())


def _fits(caption: str, truth: Truth) -> list[set[int]]:
    """For each phrase the objects of which it is true; empty if the caption cannot be read."""
    phrases = parse_caption(caption) or []
    return [{k for k, item in enumerate(truth["objects"]) if _holds(p, item, truth)} for p in phrases]


def singles_out(caption: str, truth: Truth, object_id: str) -> bool:
    """The right-object rule: the caption is one phrase that is true of this object and of no other.

    A position word compares objects that share the phrase's attributes: beyond every other by the margin. If there is only one, the
    word means a half of the image.
    """
    found = _spoken_of(caption, truth, object_id)
    if found is None:
        return False
    phrase, target, rivals = found
    if not rivals:
        return all(_in_half(word, target, truth) for word in phrase.places)
    return bool(phrase.places) and all(_beyond(word, target, rivals) for word in phrase.places)


def true_region(caption: str, truth: Truth, object_id: str) -> bool:
    """The caption is one phrase and is true of this object, perhaps of others too.

    A position word is true in the half of the image that it names, and of an object beyond all others that share the phrase's attributes.
    """
    found = _spoken_of(caption, truth, object_id)
    if found is None:
        return False
    phrase, target, rivals = found
    return all(_in_half(word, target, truth) or (rivals and _beyond(word, target, rivals)) for word in phrase.places)


def _spoken_of(
    caption: str, truth: Truth, object_id: str
) -> tuple[Phrase, Mapping[str, Any], list[Mapping[str, Any]]] | None:
    """The caption's only phrase, the object and all others that share the phrase's attributes; None where they are not the object's."""
    objects = truth["objects"]
    if all(item["object_id"] != object_id for item in objects):
        raise ValueError(
            f"no object {object_id!r} in this scene; it has {', '.join(item['object_id'] for item in objects)}"
        )
    phrases = parse_caption(caption)
    if phrases is None or len(phrases) != 1:
        return None
    candidates = [item for item in objects if _attributes_hold(phrases[0], item)]
    target = [item for item in candidates if item["object_id"] == object_id]
    return (phrases[0], target[0], [item for item in candidates if item is not target[0]]) if target else None


def _assign(fits: Sequence[set[int]], taken: frozenset[int]) -> bool:
    if not fits:
        return True
    return any(_assign(fits[1:], taken | {k}) for k in fits[0] - taken)


def _attributes_hold(p: Phrase, item: Mapping[str, Any]) -> bool:
    return p.shape == item["shape"] and p.colour in (None, item["colour"]) and p.size in (None, item["size"])


def _holds(p: Phrase, item: Mapping[str, Any], truth: Truth) -> bool:
    return _attributes_hold(p, item) and all(_in_half(word, item, truth) for word in p.places)


def _centre(word: str, item: Mapping[str, Any]) -> float:
    """The coordinate a position word speaks of, growing towards right or bottom."""
    axis = 0 if word in HORIZONTAL else 1
    return (item["box"][axis] + item["box"][axis + len(item["box"]) // 2]) / 2


def _in_half(word: str, item: Mapping[str, Any], truth: Truth) -> bool:
    side = truth["width"] if word in HORIZONTAL else truth["height"]
    if side is None:
        return False  # a cloud has no left
    return (_centre(word, item) < side / 2) == (word in (HORIZONTAL[0], VERTICAL[0]))


def _beyond(word: str, item: Mapping[str, Any], rivals: Sequence[Mapping[str, Any]]) -> bool:
    if len(item["box"]) != 4:
        return False
    others = [_centre(word, other) for other in rivals]
    if word in (HORIZONTAL[0], VERTICAL[0]):
        return _centre(word, item) + MARGIN <= min(others)
    return _centre(word, item) - MARGIN >= max(others)
