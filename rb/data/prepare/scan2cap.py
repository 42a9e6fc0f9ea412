"""ScanRefer's descriptions on boxes that a detector proposes (Scan2Cap's task), to shards of point-cloud regions for prediction.

One record per scene. An object is a described object that a proposal was matched to: its id and descriptions, with the proposal's box and
their IoU, so that scores at IoU 0.25 and 0.5 can be computed from one set. Described objects that no proposal overlaps enough are
rejected as ``no_proposal``: a score over all described objects counts them as 0.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rb.core.boxes import cloud_box_problem
from rb.core.modality import POINT_CLOUD_REGION
from rb.data.formats import ObjectAnnotation, Record
from rb.data.prepare import scanrefer
from rb.data.prepare.clouds import check_region
from rb.data.prepare.common import Conversion, Reason, RejectedError, require_raw
from rb.data.prepare.plan import Plan, RawSet
from rb.data.prepare.proposals import BOX_FORMS, MATCHES, Proposals, matched, read_proposals
from rb.data.prepare.scannet_layouts import find_scenes
from rb.data.prepare.scenes import MAX_POINTS, Scene

NAME = "scan2cap"
DEFAULT_MIN_IOU = 0.25
LAYOUT = f"""  --proposals FILE   JSON: scene id to a list of boxes, as {{"box": [8 corners or 6 numbers]}} or the numbers alone; or Mask3D's attributes as .pt
{scanrefer.LAYOUT}"""
_Json = dict[str, Any]
_NONE = Proposals(np.empty((0, 6)))


def open_raw(  # noqa: PLR0913 (a parameter for each option)
    raw: Path,
    proposals: Path,
    box_form: str = BOX_FORMS[0],
    match: str = MATCHES[0],
    min_iou: float = DEFAULT_MIN_IOU,
    scenes: Path | None = None,
    layout: str | None = None,
    colours: bool = False,
    min_points: int = scanrefer.DEFAULT_MIN_POINTS,
    max_points: int = MAX_POINTS,
) -> RawSet:
    """ScanRefer's files, the scenes and the proposals. An item is a described object.

    Args:
        proposals: the detector's boxes.
        box_form, match: as of `read_proposals` and `matched`.
        min_iou: described objects whose proposal overlaps less are rejected.
        scenes, layout, colours, min_points, max_points: as of `scanrefer.open_raw`.

    Raises:
        ValueError: a raw file is missing; the proposals are of another kind, or of other scenes.
    """
    if box_form not in BOX_FORMS or match not in MATCHES:
        raise ValueError(f"box_form must be one of {', '.join(BOX_FORMS)}, match one of {', '.join(MATCHES)}")
    if not 0 < min_iou <= 1:
        raise ValueError(f"min_iou must be above 0 and at most 1, got {min_iou}")
    options = scanrefer.scene_options(colours, min_points, max_points)
    texts = scanrefer.Descriptions(raw)
    splits = texts.splits()
    found = find_scenes(raw, scenes, layout, LAYOUT)
    require_raw(proposals, LAYOUT)

    def plan(split: str) -> Plan:
        notes: Counter[str] = Counter()
        rows = texts.rows(split, notes)
        scanrefer.require_objects(split, rows, found)
        boxes = read_proposals(proposals, box_form, scanrefer.scene_names(rows), notes)
        notes["proposals"] = sum(len(found.boxes) for found in boxes.values())
        return Plan(
            NAME,
            POINT_CLOUD_REGION,
            split,
            "described objects",
            collect=lambda conversion: _collect(conversion, rows),
            read=lambda item: scanrefer.read_scene(found, item[0], options),
            write=lambda conversion, item, scene: _write(
                conversion, item[0], item[1], scene, boxes.get(item[0], _NONE), match, min_iou, split
            ),
            notes=notes,
        )

    files = [file for split in splits for file in texts.files(split)]
    title = f"scenes: {found.layout}, in {found.folder}; proposals matched {match}"
    return RawSet(scanrefer.with_objects(splits, texts, found), [*files, *found.files, proposals], plan, title)


def _collect(conversion: Conversion, rows: list[_Json]) -> list[tuple[str, dict[str, list[_Json]]]]:
    """Scenes with their described objects; rows that cannot be used are listed, but an item here is an object."""
    items = []
    tally = conversion.tally
    for scene_id, said in scanrefer.by_scene(conversion, rows).items():
        objects: dict[str, list[_Json]] = {}
        for row in said:
            objects.setdefault(row["object_id"], []).append(row)
        items.append((scene_id, objects))
    tally.notes["descriptions read"] = tally.read
    tally.read = sum(tally.rejected.values()) + sum(len(objects) for _, objects in items)
    return items


def _write(
    conversion: Conversion,
    scene_id: str,
    said: Mapping[str, Sequence[_Json]],
    scene: Scene | RejectedError,
    proposals: Proposals,
    match: str,
    min_iou: float,
    split: str,
) -> None:
    """One scene with the objects that were found, the others rejected."""
    from rb.sources.points import EXTENSION, encode_points

    source = f"scannet/{scene_id}"
    for number, problem in proposals.wrong.items():
        conversion.writer.reject(source, Reason.PROPOSAL_UNUSABLE, f"proposal {number}: {problem}")
        conversion.tally.notes["proposals that are no boxes, left out"] += 1
    pairs: dict[str, tuple[int, float]] = {}
    if not isinstance(scene, RejectedError):
        real = {name: box for name, box in scene.boxes.items() if cloud_box_problem(box) is None}
        pairs = matched(proposals.boxes, real, [name for name in said if name in real], match)
    objects: list[ObjectAnnotation] = []
    texts = 0
    for object_id, rows in said.items():
        try:
            if isinstance(scene, RejectedError):
                raise scene
            scanrefer.box_of(scene, rows[0])
            number, iou = pairs.get(object_id, (-1, 0.0))
            if iou < min_iou:
                raise RejectedError(
                    Reason.NO_PROPOSAL,
                    f"{rows[0]['where']}: the best of {len(proposals.boxes)} proposals has IoU {iou:.3f}, below {min_iou}",
                )
            box = proposals.boxes[number].tolist()
            check_region(scene.points, box, f"{rows[0]['where']}: proposal {number}")
            captions = conversion.captions(source, [row["description"] for row in rows], object_id)
        except RejectedError as error:
            conversion.reject(source, error.reason, error.detail, object_id)
            continue
        objects.append(ObjectAnnotation(object_id, box, captions, iou))
        conversion.tally.notes["objects found at IoU 0.5"] += iou >= 0.5
        texts += len(captions)
    if isinstance(scene, RejectedError) or not objects:
        return
    record = Record(source, NAME, split, 0, 0, [], objects)
    if conversion.write(record, encode_points(scene.points), EXTENSION, len(objects), texts):
        conversion.tally.notes.update(scene.notes)
        conversion.tally.notes["scenes"] += 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``rb prepare scan2cap``."""
    parser.add_argument("--proposals", type=Path, required=True, help="the detector's boxes (.json, .pt)")
    parser.add_argument(
        "--box-form",
        choices=BOX_FORMS,
        default=BOX_FORMS[0],
        help="what six numbers are: min xyz max xyz, or centre and sizes (default: minmax)",
    )
    how = "each described object takes one proposal, by Scan2Cap's benchmark; or the nearest, by the papers' code (default: one_to_one)"
    parser.add_argument("--match", choices=MATCHES, default=MATCHES[0], help=how)
    least = f"reject described objects whose proposal overlaps less (default: {DEFAULT_MIN_IOU})"
    parser.add_argument("--min-iou", type=float, default=DEFAULT_MIN_IOU, help=least)
    scanrefer.add_arguments(parser)
