"""Flickr30k Entities to shards of image regions, captioned by the phrases of the images' sentences.

An entity is what several phrases of an image's five sentences refer to. It has boxes, or it is the whole scene, or it is not to be seen. An
entity of several boxes is a group ("two men"); ``GROUPS`` says what becomes of it. The sentences are kept as the whole image's captions. Source
ids are ``flickr30k/ID``, object ids the entity's number.
"""

from __future__ import annotations

import argparse
import functools
from collections import Counter
from pathlib import Path

from rb.core.modality import IMAGE_REGION
from rb.data.prepare.common import CheckedImage, Conversion, Reason, RejectedError, add_exif, find_raw, require_raw
from rb.data.prepare.entity_files import Box, Entities, read_entities
from rb.data.prepare.image_sets import ImageFile, Region, RegionImage, write_regions
from rb.data.prepare.plan import Plan, RawSet
from rb.data.prepare.raw_text import read_text

NAME = "flickr_entities"
SPLITS = ("train", "val", "test")
GROUPS = ("union", "each", "leave-out")
LAYOUT = """  RAW/train.txt, val.txt, test.txt      the number of an image a line
  RAW/Sentences/36979.txt, RAW/Annotations/36979.xml ...      annotations.zip, unpacked
  RAW/UNRELATED_CAPTIONS                sentences of other images, which are left out
  RAW/flickr30k-images/36979.jpg ...    (or --images DIR, the folder of the files themselves)"""
_ANNOTATIONS = ("Annotations", "annotations/Annotations")
_IMAGES = ("flickr30k-images", "flickr30k_images", "images")
_NUMBERS = ("1", "2", "3", "4", "5")  # of an image's sentences
_Content = tuple[Entities, CheckedImage | RejectedError]


def open_raw(raw: Path, images: Path | None = None, groups: str = "union", exif: str | None = None) -> RawSet:
    """The folder of Flickr30k Entities. An item is a region: an entity, or with ``each`` one of its boxes.

    Args:
        images: the folder of the image files, if not in ``raw``.
        groups: what becomes of an entity with several boxes: ``union``, one region, the box around all, as in the published benchmark;
            ``each`` box a region with the group's phrases (though "two men" is not true of either); ``leave-out``.
        exif: as of `rb.data.shard_writer.ShardWriter`.

    Raises:
        ValueError: a raw file or folder is missing.
    """
    assert groups in GROUPS
    folder = find_raw(raw, _ANNOTATIONS, LAYOUT).parent
    require_raw(folder / "Sentences", LAYOUT)
    lists = {split: raw / f"{split}.txt" for split in SPLITS if (raw / f"{split}.txt").is_file()}
    if not lists:
        require_raw(raw / "train.txt", LAYOUT)
    root = find_raw(raw, _IMAGES, LAYOUT) if images is None else require_raw(images, LAYOUT)
    unrelated = raw / "UNRELATED_CAPTIONS"
    dataset = NAME if groups == "union" else f"{NAME}_{groups.replace('-', '_')}"

    def plan(split: str) -> Plan:
        if split not in lists:
            raise ValueError(f"{raw / split}.txt: not found; the splits of {raw} are {', '.join(lists)}")
        notes: Counter[str] = Counter()
        skipped = _unrelated(unrelated, notes)

        def read(stem: str) -> _Content:
            if "#" in stem:
                raise RejectedError(Reason.UNSAFE_NAME, f"{stem!r:.80}: # divides source and object in an id")
            found = read_entities(folder, stem, skipped.get(stem, set()))
            try:
                return found, _file(root, stem, found).read(exif)
            except RejectedError as error:
                return found, error

        def write(conversion: Conversion, stem: str, content: _Content | RejectedError) -> None:
            if isinstance(content, RejectedError):  # nobody knows how many regions
                conversion.tally.read += 1
                conversion.reject(f"flickr30k/{stem}", content.reason, content.detail)
                return
            found, image = content
            regions = _regions(conversion, f"flickr30k/{stem}", found, groups)
            item = RegionImage(_file(root, stem, found), regions, found.sentences)
            write_regions(conversion, item, image, dataset, split)

        return Plan(
            dataset,
            IMAGE_REGION,
            split,
            "regions",
            collect=functools.partial(_stems, file=lists[split]),
            read=read,
            write=write,
            notes=notes,
            exif=exif,
        )

    # Of the folders: a file that is added or removed changes their time.
    files = [*lists.values(), *filter(Path.is_file, [unrelated]), folder / "Annotations", folder / "Sentences"]
    return RawSet(tuple(lists), files, plan)


def _stems(conversion: Conversion, file: Path) -> list[str]:
    """The images of a split, each once."""
    stems = list(dict.fromkeys(read_text(file, conversion.tally.notes).split()))
    if not stems:
        raise ValueError(f"{file}: names no image; download it again")
    return stems


def _unrelated(path: Path, notes: Counter[str]) -> dict[str, set[int]]:
    """Image -> numbers, from 1, of the sentences that belong to another image; nothing where there is no such file."""
    found: dict[str, set[int]] = {}
    for line in read_text(path, notes).splitlines() if path.is_file() else ():
        words = line.split()
        if len(words) == 2 and words[1] in _NUMBERS:
            found.setdefault(words[0], set()).add(_NUMBERS.index(words[1]) + 1)
    return found


def _file(root: Path, stem: str, found: Entities) -> ImageFile:
    return ImageFile(f"flickr30k/{stem}", root, (f"{stem}.jpg",), found.size)


def _regions(conversion: Conversion, source: str, found: Entities, groups: str) -> list[Region]:
    """The regions of an image, as far as its annotations can be used; counts all of them."""
    tally = conversion.tally
    tally.notes.update(found.notes)
    for line in found.broken:
        tally.read += 1
        conversion.reject(source, Reason.MALFORMED_ROW, f"the markup of {line!r:.200} is damaged")
    regions = []
    for entity, phrases in found.phrases.items():
        boxes = found.boxes.get(entity, [])
        if not boxes and entity in found.boxless:
            tally.notes[f"entities without a box: {found.boxless[entity]}"] += 1
            continue
        if len(boxes) > 1:
            tally.notes["entities of several boxes"] += 1
        for object_id, box in _boxes(entity, boxes, groups):
            tally.read += 1
            try:
                if isinstance(box, RejectedError):
                    raise box
                regions.append(Region(object_id, box, conversion.captions(source, phrases, object_id)))
            except RejectedError as error:
                conversion.reject(source, error.reason, error.detail, object_id)
    for entity, boxes in found.boxes.items():
        if entity not in found.phrases:
            tally.notes["boxes of entities that no sentence names"] += len(boxes)
    return regions


def _boxes(entity: str, boxes: list[Box | RejectedError], groups: str) -> list[tuple[str, Box | RejectedError]]:
    """(object id, box) of the regions that an entity makes."""
    if not boxes:
        return [(entity, RejectedError(Reason.UNKNOWN_OBJECT, f"entity {entity} is not in the image's annotation"))]
    if len(boxes) == 1:
        return [(entity, boxes[0])]
    if groups == "each":
        return [(f"{entity}-{number}", box) for number, box in enumerate(boxes, 1)]
    return [(entity, _union(boxes))] if groups == "union" else []


def _union(boxes: list[Box | RejectedError]) -> Box | RejectedError:
    """The box around all; the error of one that cannot be read."""
    sound: list[Box] = []
    for box in boxes:
        if isinstance(box, RejectedError):
            return box
        sound.append(box)
    left, top, right, bottom = zip(*sound, strict=True)
    return [min(left), min(top), max(right), max(bottom)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``rb prepare flickr_entities``."""
    parser.add_argument("--images", type=Path, help="the folder of the image files (default: RAW/flickr30k-images)")
    parser.add_argument(
        "--groups",
        default="union",
        choices=GROUPS,
        help="an entity of several boxes: the box around them (default), each box a region, or left out",
    )
    add_exif(parser)
