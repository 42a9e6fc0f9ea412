"""Spoils raw items of the toy world in the ways that real data sets are spoiled, one way for each reason a converter has.

Used by rb/toy/raw/data_sets.py. The name of a kind is the reason that must turn up in ``rejected.jsonl``, but ``box_leans_out``: half a pixel outside,
which is cut and used.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

COCO_KINDS = ("no_caption", "unreadable_image", "image_missing", "duplicate_source", "empty_caption", "unsafe_name")
REFCOCO_KINDS = (
    "no_caption",
    "box_outside_image",
    "box_empty",
    "unreadable_image",
    "image_missing",
    "image_size_mismatch",
    "unknown_annotation",
    "annotation_of_other_image",
    "box_leans_out",
)
OBJAVERSE_KINDS = (
    "no_caption",
    "points_not_finite",
    "too_few_points",
    "points_missing",
    "points_unreadable",
    "points_degenerate",
    "duplicate_source",
)
_FEW_POINTS = 100
_Json = dict[str, Any]


def coco(kind: str, entry: _Json, data: bytes | None, first: _Json) -> tuple[_Json, bytes | None]:
    """A spoiled entry of ``dataset_coco.json`` and its image's bytes (none: no file). ``first``: an earlier entry."""
    if kind == "no_caption":
        entry["sentences"] = [{**sentence, "raw": " \n"} for sentence in entry["sentences"]]
    elif kind == "empty_caption":
        entry["sentences"][0]["raw"] = "..."
    elif kind == "duplicate_source":
        # The same image of the same split a second time.
        entry = {**entry, "cocoid": first["cocoid"], "split": first["split"]}
    elif kind == "unsafe_name":
        entry["filename"] = "../../" + entry["filename"]
    elif kind == "unreadable_image":
        return entry, _cut(data)
    else:
        assert kind == "image_missing", kind
        return entry, None
    return entry, data


def refcoco(
    kind: str, image: _Json, annotations: Sequence[_Json], refs: Sequence[_Json], data: bytes | None
) -> bytes | None:
    """Spoil, in place, an image's rows (the first reference's, where one is meant); its file's bytes (none: no file)."""
    ref = refs[0]
    annotation = next(a for a in annotations if a["id"] == ref["ann_id"])
    x, y, width, height = annotation["bbox"]
    if kind == "no_caption":
        for sentence in ref["sentences"]:
            sentence["sent"] = sentence["raw"] = ""
    elif kind == "box_outside_image":
        annotation["bbox"] = [x + image["width"], y, width, height]
    elif kind == "box_empty":
        annotation["bbox"] = [x, y, 0.0, height]
    elif kind == "box_leans_out":
        annotation["bbox"] = [-0.5, y, x + width + 0.5, height]
    elif kind == "image_size_mismatch":
        image["width"] += 6
    elif kind == "unknown_annotation":
        ref["ann_id"] = -ref["ann_id"]
    elif kind == "annotation_of_other_image":
        annotation["image_id"] -= 1
    elif kind == "unreadable_image":
        return _cut(data)
    else:
        assert kind == "image_missing", kind
        return None
    return data


def objaverse(kind: str, caption: str, points: np.ndarray, data: bytes | None) -> tuple[str, bytes | None]:
    """A spoiled caption and the bytes of the cloud's ``.npz`` (none: no file)."""
    if kind == "no_caption":
        return "", data
    if kind == "points_missing":
        return caption, None
    if kind == "points_unreadable":
        return caption, _cut(data)
    if kind == "duplicate_source":
        return caption, data
    points = points.copy()
    if kind == "points_not_finite":
        points[len(points) // 2, 1] = np.nan
    elif kind == "points_degenerate":
        points[:] = points[0]
    else:
        assert kind == "too_few_points", kind
        points = points[:_FEW_POINTS]
    stream = io.BytesIO()
    np.savez(stream, points)
    return caption, stream.getvalue()


def _cut(data: bytes | None) -> bytes:
    """As after a broken download."""
    assert data is not None
    return data[: len(data) // 2]
