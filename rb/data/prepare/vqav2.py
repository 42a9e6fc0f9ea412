"""VQAv2 (questions about COCO's images, with ten answers each) to shards of questions: a record is an image with all its questions.

The test splits have no published answers. Source ids are ``coco/<image id>``.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rb.core.modality import IMAGE
from rb.data.formats import Question, Record
from rb.data.prepare.coco_images import find_coco_images
from rb.data.prepare.common import CheckedImage, Conversion, RejectedError, add_exif, require_raw
from rb.data.prepare.image_sets import ImageFile
from rb.data.prepare.plan import Plan, RawSet
from rb.data.prepare.vqa_files import Answers, Asked, read_questions, subset_of

NAME = "vqav2"
LAYOUT = """  RAW/v2_OpenEnded_mscoco_train2014_questions.json, RAW/v2_mscoco_train2014_annotations.json     (train)
  RAW/v2_OpenEnded_mscoco_val2014_questions.json, RAW/v2_mscoco_val2014_annotations.json         (val)
  RAW/v2_OpenEnded_mscoco_test-dev2015_questions.json                                            (test-dev)
  RAW/v2_OpenEnded_mscoco_test2015_questions.json                                                (test)
      or LAVIS's vqa_train.json, vqa_val_eval.json, vqa_val.json, vqa_test.json in the questions' place
      (or in RAW/annotations/, or told by --questions FILE and --annotations FILE)
  RAW/train2014/COCO_train2014_000000000009.jpg ..., RAW/val2014/, RAW/test2015/
      (or train2017/000000000009.jpg, val2017/; the folder of these may be RAW/images/, or told by --images DIR)"""
# Split -> COCO's subset, LAVIS's names of its questions.
_SPLITS = {
    "train": ("train2014", ("vqa_train.json",)),
    "val": ("val2014", ("vqa_val_eval.json", "vqa_val.json")),
    "test-dev": ("test-dev2015", ()),
    "test": ("test2015", ("vqa_test.json",)),
}
_ANSWERED = ("train", "val")


@dataclass
class _Image:
    """One item: an image and all that is asked about it."""

    file: ImageFile
    questions: list[Question] = field(default_factory=list)


def open_raw(
    raw: Path,
    questions: Path | None = None,
    annotations: Path | None = None,
    images: Path | None = None,
    exif: str | None = None,
) -> RawSet:
    """The files of questions and answers. An item is an image, the counts are of questions.

    Args:
        questions: a file of questions, if not in ``raw`` under its usual name; the set is then its split only.
        annotations: the file of its answers.
        images: the folder of ``train2014``, ``val2014``, ``test2015``, if it is not ``raw``.
        exif: as of `rb.data.shard_writer.ShardWriter`.

    Raises:
        ValueError: a raw file or folder is missing or another than expected.
    """
    files = _find(raw, questions)
    answers = {split: _answers(raw, annotations, split) for split in files if split in _ANSWERED}

    def plan(split: str) -> Plan:
        if split not in files:
            raise ValueError(f"split {split!r}: no questions of it; {raw} has {', '.join(files)}")
        notes: Counter[str] = Counter()
        return Plan(
            NAME,
            IMAGE,
            split,
            "questions",
            collect=lambda conversion: _collect(conversion, raw, images, files[split], answers.get(split), split),
            read=lambda item: item.file.read(exif),
            write=lambda conversion, item, image: _write(conversion, item, image, split),
            notes=notes,
            exif=exif,
        )

    used = [file for file in (*files.values(), *answers.values()) if file is not None]
    return RawSet(tuple(files), used, plan)


def _find(raw: Path, questions: Path | None) -> dict[str, Path]:
    """Split -> its file of questions."""
    if questions is not None:
        require_raw(questions, LAYOUT)
        subset = subset_of(questions)
        by_name = re.search(r"(?<![a-z])(train|val|test)(?![a-z])", questions.stem)
        split = next((name for name, (one, _) in _SPLITS.items() if one == subset), by_name[1] if by_name else None)
        if split is None:
            raise ValueError(
                f"{questions}: which split it holds is neither in 'data_subtype' nor in its name; let it end in _train.json, _val.json or _test.json"
            )
        return {split: questions}
    found = {}
    for split, (subset, others) in _SPLITS.items():
        names = [f"v2_OpenEnded_mscoco_{subset}_questions.json", *others]
        places = [folder / name for name in names for folder in (raw, raw / "annotations")]
        first = next((path for path in places if path.exists()), None)
        if first is not None:
            found[split] = first
    return found or {"train": require_raw(raw / "v2_OpenEnded_mscoco_train2014_questions.json", LAYOUT)}


def _answers(raw: Path, annotations: Path | None, split: str) -> Path | None:
    if annotations is not None:
        return require_raw(annotations, LAYOUT)
    name = f"v2_mscoco_{_SPLITS[split][0]}_annotations.json"
    return next((path for path in (raw / name, raw / "annotations" / name) if path.exists()), None)


def _collect(
    conversion: Conversion, raw: Path, images: Path | None, questions: Path, annotations: Path | None, split: str
) -> list[_Image]:
    notes = conversion.tally.notes
    folder = find_coco_images(raw, images)
    answers = Answers(annotations, notes) if annotations else None
    subset = subset_of(questions) or _SPLITS[split][0]
    found: dict[int, _Image] = {}
    for asked in read_questions(questions, subset.replace("test-dev", "test"), answers, notes):
        if not isinstance(asked, Asked):
            conversion.tally.read += 1
            conversion.reject(asked[0], asked[1].reason, asked[1].detail)
            continue
        if split in _ANSWERED and not asked.question.answers:
            raise ValueError(
                f"{questions}: no answers to its questions; put v2_mscoco_{_SPLITS[split][0]}_annotations.json beside it, or give --annotations FILE"
            )
        if asked.image not in found:
            found[asked.image] = _Image(folder.image(f"coco/{asked.image}", asked.parts, asked.image))
        found[asked.image].questions.append(asked.question)
    if answers:
        notes["annotations of no question"] = len(answers)
    folder.check([item.file.parts for item in found.values()], LAYOUT)
    return list(found.values())


def _write(conversion: Conversion, item: _Image, image: CheckedImage | RejectedError, split: str) -> None:
    """One image with its questions, or all of them rejected for the image's sake."""
    conversion.tally.read += len(item.questions)
    source = item.file.source
    if isinstance(image, RejectedError):
        for one in item.questions:
            conversion.reject(source, image.reason, image.detail, str(one.question_id))
        return
    record = Record(source, NAME, split, image.width, image.height, [], questions=item.questions)
    if conversion.write(record, image.data, image.extension, len(item.questions), 0):
        conversion.tally.notes["images"] += 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``rb prepare vqav2``."""
    parser.add_argument("--questions", type=Path, metavar="FILE", help="one file of questions (default: found in RAW)")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="the file of its answers")
    parser.add_argument("--images", type=Path, help="the folder of train2014, val2014, test2015 (default: RAW)")
    add_exif(parser)
