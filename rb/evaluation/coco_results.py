"""Others' predictions in COCO's result format, held against official annotations: rows that ``rb score`` scores as it scores ours.

Results are a JSON list of {image_id, caption}. Annotations are an object with ``images`` ({id}) and ``annotations`` ({image_id, caption}), as
in ``captions_val2014.json``, ``nocaps_val_4500_captions.json``, LAVIS's ``coco_karpathy_test_gt.json``, and, with texts as ids, RegionBLIP's
evaluation files. What is scored is what COCO's own evaluation scores: every listed image, all annotations of an image being its references.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rb.core.files import file_sha256
from rb.core.json_stream import stream_list, stream_lists
from rb.core.modality import IMAGE, IMAGE_REGION
from rb.core.output import note
from rb.core.strict_json import FormatError
from rb.core.text_encoding import ENCODING_NOTE
from rb.data.predictions import Prediction
from rb.data.prepare.coco_files import is_list

OTHER = "other"  # the variant of these predictions
POLICY = "all annotations of an image"
_RESULT = frozenset({"image_id", "caption"})
_LISTS = {"images": frozenset({"id"}), "annotations": _RESULT}
_REMEDY = "write or download it again"
_REGION = re.compile(r".+_box(_\d+){4}")  # RegionBLIP's id of a region: IMAGE_box_X_Y_W_H
_SPLIT = re.compile(r"(?<![a-z])(train|val|test)(?![a-z])")
_FORMAT = "COCO's result format is a list of {image_id, caption}"
_ANNOTATIONS = "annotations are an object with 'images' and 'annotations', as in captions_val2014.json or coco_karpathy_test_gt.json"


def read_coco_results(results: Path, annotations: Path) -> tuple[list[Prediction], dict[str, Any]]:
    """One row an image in the order of the annotations, and what `rb.evaluation.scoring` is to say about them.

    The set is called after the annotations' file. Annotations of images that it does not list are left out and counted on stderr.

    Raises:
        FormatError: another format, ids that miss, are doubled or unknown, an image without annotations; each says how many.
    """
    references, surplus = _references(annotations)
    captions = _captions(results)
    unknown = [image for image in captions if image not in references]
    if unknown:
        raise FormatError(
            f"{results}: {_some(unknown, 'image')} of {len(captions):,} not listed in {annotations}; give the annotations of the split that was "
            "captioned, or remove these rows"
        )
    missing = [image for image in references if image not in captions]
    if missing:
        raise FormatError(
            f"{results}: {_some(missing, 'image')} of {len(references):,} in {annotations} without a caption; caption them, or give annotations "
            "whose 'images' lists only what was captioned (coco_karpathy_test_gt.json for Karpathy's test split)"
        )
    if surplus:
        note(f"note: {annotations}: left out {surplus:,} annotations of images that it does not list")
    split = _SPLIT.search(annotations.stem.lower())
    modality = IMAGE_REGION if all(map(_REGION.fullmatch, references)) else IMAGE
    rows = [
        Prediction(
            image, image, None, modality, annotations.stem, split[1] if split else "all", captions[image], texts, None
        )
        for image, texts in references.items()
    ]
    about = {
        "variant": OTHER,
        "reference_policy": POLICY,
        "annotations": str(annotations.resolve()),
        "annotations_sha256": file_sha256(annotations),
    }
    return rows, about


def _references(path: Path) -> tuple[dict[str, list[str]], int]:
    """Image to its captions, in the order of ``images``; and how many annotations are of other images."""
    if _is_list(path):
        raise FormatError(f"{path}: is a list; {_ANNOTATIONS}")
    notes: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    listed: dict[str, None] = {}  # an image that is listed twice is one image, as in COCO's own code
    said: dict[str, list[str]] = {}
    for name, item in stream_lists(path, _LISTS, notes, remedy=_REMEDY):
        where = f"{path}: {name}[{counts[name]}]"
        counts[name] += 1
        if name == "images":
            listed[_id(item, "id", where)] = None
        else:
            image, text = _row(item, where)
            said.setdefault(image, []).append(text)
    _tell(path, notes)
    if not listed:
        raise FormatError(f"{path}: 'images' is empty, so there is nothing to score; {_ANNOTATIONS}")
    bare = [image for image in listed if image not in said]
    if bare:
        raise FormatError(
            f"{path}: {_some(bare, 'image')} without annotations; remove them from 'images', and from the results"
        )
    references = {image: said[image] for image in listed}
    return references, counts["annotations"] - sum(map(len, references.values()))


def _captions(path: Path) -> dict[str, str]:
    """Image to its one caption."""
    if not _is_list(path):
        raise FormatError(f"{path}: must be a list; {_FORMAT}")
    notes: Counter[str] = Counter()
    rows = [
        _row(row, f"{path}: row {number}")
        for number, row in enumerate(stream_list(path, _RESULT, notes, remedy=_REMEDY), 1)
    ]
    _tell(path, notes)
    counts = Counter(image for image, _ in rows)
    doubled = [image for image, count in counts.items() if count > 1]
    if doubled:
        raise FormatError(
            f"{path}: {_some(doubled, 'image')} with more than one row; every image has one caption: keep one row of each"
        )
    return dict(rows)


def _is_list(path: Path) -> bool:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; {_FORMAT}, and {_ANNOTATIONS}")
    return is_list(path)


def _tell(path: Path, notes: Counter[str]) -> None:
    if notes[ENCODING_NOTE]:
        note(f"note: {path}: {notes[ENCODING_NOTE]:,} {ENCODING_NOTE}")


def _row(row: object, where: str) -> tuple[str, str]:
    image = _id(row, "image_id", where)
    assert isinstance(row, dict)
    if not isinstance(row.get("caption"), str):
        raise FormatError(f"{where}: caption must be a text, got {row.get('caption')!r:.80}; write the row again")
    return image, row["caption"]


def _id(row: object, field: str, where: str) -> str:
    """The image of a row as text: files of one data set do not agree whether it is a number."""
    value = row.get(field) if isinstance(row, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).isprintable() or value == "":
        raise FormatError(
            f"{where}: must be an object whose {field} is a whole number or a text, got {row!r:.80}; write it again"
        )
    return str(value)


def _some(images: Sequence[str], what: str) -> str:
    """``3 images (7, 9, 12)``, or the first three of more."""
    shown = ", ".join(images[:3]) + (", ..." if len(images) > 3 else "")
    return f"{len(images):,} {what}{'s' if len(images) > 1 else ''} ({shown})"
