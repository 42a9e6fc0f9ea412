"""Boxes that a detector proposes in scenes: the file, and which described object each is taken for.

A file is JSON: scene id to a list of boxes, each an object with ``box`` (or ``bbox``) and anything else beside it (``caption``, ``obj_prob``,
``sem_prob``: the predictions that Scan2Cap's benchmark, Vote2Cap-DETR and D3Net write), or the numbers alone. A box is eight corners
[8, 3], or six numbers. Or it is a ``.pt``: scene id to ``locs`` [P, 6], centres and sizes (``scannet_mask3d_val_attributes.pt`` of Chat-Scene).
All are in the axis-aligned scene's metres.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from rb.core.boxes import cloud_box_problem
from rb.core.strict_json import parse_foreign
from rb.core.torch_files import DAMAGE, holds_its_numbers, load_torch
from rb.data.prepare.raw_text import read_text

BOX_FORMS = ("minmax", "centre_size")
MATCHES = ("one_to_one", "nearest")
_PREFIX = "scannet/"  # of our source ids
_MOST = 4096  # boxes of a scene; detectors give some hundreds
_MOST_LISTS = 2_000_000  # lists and objects of a file, as small ones take many times their letters; 256 boxes of eight corners in 312 scenes have 800,000


@dataclass(frozen=True)
class Proposals:
    """The usable ``boxes`` [P, 6] of a scene, min xyz, max xyz; and what is wrong with the others, by their number in the file.

    ``captions`` are those of the boxes, None where a box has none; empty unless they were asked for.
    """

    boxes: NDArray[np.float64]
    wrong: Mapping[int, str] = field(default_factory=dict)
    captions: Sequence[str | None] = ()


def read_proposals(
    path: Path, form: str, scenes: Collection[str], notes: Counter[str], captions: bool = False
) -> dict[str, Proposals]:
    """Scene id to its proposals, for those of ``scenes`` that the file has.

    Args:
        form: what six numbers of JSON mean: ``minmax`` (min xyz, max xyz) or ``centre_size`` (centre, sizes).
        captions: read ``caption`` of the boxes too: a text, or a list whose first text counts (as Scan2Cap's benchmark writes it).

    Raises:
        ValueError: the file is none of these kinds, or has none of the scenes.
    """
    if path.suffix == ".pt":
        content, form = _read_torch(path), "centre_size"
    else:
        names = {*scenes, *(f"{_PREFIX}{name}" for name in scenes)}
        # Probabilities of classes, and captions where nobody asks for them, are left out while the file is read.
        text = read_text(path, notes)
        if text.count("[") + text.count("{") > _MOST_LISTS:
            raise ValueError(
                f"{path}: more than {_MOST_LISTS:,} lists and objects; keep fewer boxes of each scene, and nothing but boxes"
            )
        content = parse_foreign(
            text, str(path), frozenset({"box", "bbox", *(["caption"] if captions else []), *names}), "write it again"
        )
        if not isinstance(content, dict) or not all(isinstance(rows, list) for rows in content.values()):
            raise ValueError(f"{path}: must be an object of scene ids, each with a list of boxes")
    found = {name.removeprefix(_PREFIX): rows for name, rows in content.items()}
    found = {name: rows for name, rows in found.items() if name in scenes}
    if not found:
        raise ValueError(
            f"{path}: holds none of the {len(scenes)} scenes, such as {next(iter(scenes), '')}; give the proposals of this split"
        )
    return {name: _proposals(rows, form, captions) for name, rows in found.items()}


def _read_torch(path: Path) -> dict[str, list[list[float]]]:
    """Scene id to ``locs`` [P, 6] (centre, sizes) of the attributes that Chat-Scene and others made of Mask3D's instances."""
    from torch import Tensor  # parsers need not wait for it

    try:
        content = load_torch(path)
    except DAMAGE as error:
        raise ValueError(f"{path}: not a file of tensors ({' '.join(str(error).split())[:200]})") from None
    found = {}
    for name, row in content.items() if isinstance(content, dict) else ():
        boxes = row.get("locs") if isinstance(row, dict) else None
        if not isinstance(boxes, Tensor) or boxes.ndim != 2 or boxes.shape[1] != 6 or not holds_its_numbers(boxes):
            raise ValueError(f"{path}: {name!r:.80} must have locs, a tensor [P, 6] of centres and sizes")
        found[str(name)] = boxes[: _MOST + 1].tolist()
    return found


def _proposals(rows: Sequence[Any], form: str, captions: bool = False) -> Proposals:
    boxes: list[list[float]] = []
    texts: list[str | None] = []
    wrong: dict[int, str] = {}
    for number, row in enumerate(rows):
        try:
            if number >= _MOST:
                raise ValueError(f"a scene has at most {_MOST:,} boxes")
            boxes.append(_box(row, form))
            texts.append(_caption(row))
        except ValueError as error:
            wrong[number] = str(error)
    return Proposals(np.array(boxes, dtype=np.float64).reshape(-1, 6), wrong, texts if captions else ())


def _caption(row: Any) -> str | None:
    """Of one entry; benchmarks put it into a list."""
    value = row.get("caption") if isinstance(row, dict) else None
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, str) else None


def _box(row: Any, form: str) -> list[float]:
    """Min xyz, max xyz of one entry; ``ValueError`` says what is wrong."""
    value = (row.get("box") or row.get("bbox")) if isinstance(row, dict) else row
    try:
        numbers = np.array(value, dtype=np.float64) if _of_numbers(value) else np.empty(0)
    except (TypeError, ValueError, OverflowError):
        numbers = np.empty(0)
    if numbers.shape == (8, 3):
        box = [*numbers.min(0).tolist(), *numbers.max(0).tolist()]
    elif numbers.shape == (6,) and form == "centre_size":
        box = [*(numbers[:3] - numbers[3:] / 2).tolist(), *(numbers[:3] + numbers[3:] / 2).tolist()]
    elif numbers.shape == (6,):
        box = numbers.tolist()
    else:
        raise ValueError(f"must be eight corners [8, 3] or six numbers, got {value!r:.80}")
    if cloud_box_problem(box):
        hint = "; are its numbers centre and sizes (--box-form centre_size)?" if form == "minmax" else ""
        raise ValueError(f"box {box} has no volume, or numbers that are not finite{hint}")
    return box


def _of_numbers(value: Any) -> bool:
    """A list of numbers, or of lists of them; numpy would take texts and truth values for numbers, too."""
    flat = (
        [item for row in value for item in (row if isinstance(row, list) else [row])] if isinstance(value, list) else []
    )
    return bool(flat) and all(type(item) in (int, float) for item in flat)


def overlaps(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """IoU and generalised IoU (arXiv 1902.09630) of axis-aligned boxes [P, 6] and [G, 6]: each [P, G]."""
    one, other = a[:, None], b[None]
    inner = np.clip(np.minimum(one[..., 3:], other[..., 3:]) - np.maximum(one[..., :3], other[..., :3]), 0, None).prod(
        -1
    )
    hull = (np.maximum(one[..., 3:], other[..., 3:]) - np.minimum(one[..., :3], other[..., :3])).prod(-1)
    volumes = (one[..., 3:] - one[..., :3]).prod(-1) + (other[..., 3:] - other[..., :3]).prod(-1) - inner
    iou = inner / volumes
    return iou, iou - (hull - volumes) / hull


def matched(
    proposals: NDArray[np.float64], boxes: Mapping[str, Sequence[float]], described: Sequence[str], how: str
) -> dict[str, tuple[int, float]]:
    """Described object to (number of its proposal, their IoU); an object without an overlapping one is not there.

    Args:
        proposals: [P, 6].
        boxes: of all objects of the scene, by id.
        described: the objects to find.
        how: ``one_to_one``: the assignment of proposals to described objects with the largest sum of generalised IoU, as Scan2Cap's benchmark
            does; ``nearest``: each proposal goes to the object, described or not, that it overlaps most, and each object takes the best of
            its proposals, as the code of Scan2Cap's and Vote2Cap-DETR's papers does.
    """
    names = list(described) if how == "one_to_one" else list(boxes)
    if not len(proposals) or not names:
        return {}
    iou, generalised = overlaps(proposals, np.array([boxes[name] for name in names], dtype=np.float64))
    if how == "one_to_one":
        pairs = list(zip(*linear_sum_assignment(-generalised), strict=True))
    else:
        nearest = iou.argmax(1)
        pairs = [(int(np.where(nearest == k, iou[:, k], -1).argmax()), k) for k in range(len(names))]
        pairs = [(p, k) for p, k in pairs if nearest[p] == k]
    found = {names[k]: (int(p), float(iou[p, k])) for p, k in pairs if iou[p, k] > 0}
    return {name: found[name] for name in described if name in found}
