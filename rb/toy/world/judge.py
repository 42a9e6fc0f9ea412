"""Judges predictions on the toy world against ``truth.json``: what ``rb score --truth`` hands to the scorer.

Whether one sentence is true of one scene is in rb/toy/world/truth.py (images, clouds) and rb/toy/world/room_truth.py (rooms: entries with ``room``);
here rows of a predictions file are brought together with their scenes. What each verdict means: ``rb.evaluation.verdicts.VERDICTS``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rb.core.strict_json import FormatError, read
from rb.data.predictions import Prediction
from rb.evaluation.verdicts import Judge
from rb.toy.world import room_truth
from rb.toy.world.truth import Truth, singles_out, true_region, true_whole


def read_truth(paths: Sequence[Path]) -> dict[str, Truth]:
    """The scenes of several ``truth.json``; ``FormatError`` where one is none, or two say different things of one scene."""
    scenes: dict[str, Truth] = {}
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{path}: no truth file there; `rb toy raw` writes truth.json beside each data set")
        found = read(path)
        if not isinstance(found, dict) or not all(isinstance(e, dict) and "objects" in e for e in found.values()):
            raise FormatError(f"{path}: no truth file (scene id to objects); give a truth.json of the toy world")
        clash = [name for name in found if name in scenes and scenes[name] != found[name]]
        if clash:
            raise FormatError(f"{path}: says something else of scene {clash[0]!r} than an earlier truth file")
        scenes |= found
    return scenes


def toy_judge(paths: Sequence[Path]) -> Judge:
    """A judge by these truth files. It raises a ``ValueError`` for a scene or an object that they do not hold."""
    scenes = read_truth(paths)
    named = ", ".join(map(str, paths))

    def judge(rows: Sequence[Prediction]) -> list[dict[str, bool]]:
        for row in rows:
            if row.source_id not in scenes:
                raise ValueError(f"scene {row.source_id!r} is not in {named}; give the truth.json of its data set")
        sources = list(dict.fromkeys(row.source_id for row in rows))
        # The scene half the file away: the same for the same file, and each scene serves once.
        away = {name: sources[(i + len(sources) // 2) % len(sources)] for i, name in enumerate(sources)}
        found = []
        for row in rows:
            scene = scenes[row.source_id]
            verdict = {"true": holds(row.prediction, scene)}
            if row.object_id is not None:
                verdict |= _of_region(row.prediction, scene, row.object_id)
            elif len(sources) > 1:
                verdict["true_elsewhere"] = holds(row.prediction, scenes[away[row.source_id]])
            found.append(verdict)
        return found

    return judge


def holds(caption: str, scene: Truth) -> bool:
    """Whether the whole caption is true of a scene: for images and clouds of something in it, each phrase; for rooms of one solid in it."""
    if true_whole(caption, scene):
        return True
    return any(true_of(caption, scene, item["object_id"]) for item in scene["objects"])


def true_of(caption: str, scene: Truth, object_id: str) -> bool:
    """Whether the whole caption is true of one object."""
    return (room_truth.true_region if "room" in scene else true_region)(caption, scene, object_id)


def is_hard(scene: Truth, object_id: str) -> bool:
    """Whether another object has the same shape and colour, so that a size or a place must be said."""
    kinds = {item["object_id"]: (item["shape"], item["colour"]) for item in scene["objects"]}
    return sum(kind == kinds[object_id] for kind in kinds.values()) > 1


def _of_region(caption: str, scene: Truth, object_id: str) -> dict[str, bool]:
    right = (room_truth.singles_out if "room" in scene else singles_out)(caption, scene, object_id)
    verdict = {"true_of_box": true_of(caption, scene, object_id), "right_object": right}
    hard = is_hard(scene, object_id)
    return verdict | ({f"{name}_hard": value for name, value in verdict.items()} if hard else {}) | {"hard": hard}
