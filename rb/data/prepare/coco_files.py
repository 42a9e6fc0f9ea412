"""Annotation files of whole images with captions, and which of them a file is, by its content: Karpathy's, COCO's own, LAVIS's.

Karpathy's files (``dataset_coco.json``, ``dataset_flickr30k.json``): {images: [{filepath, filename, cocoid, split, sentences: [{raw}]}]};
Flickr30k's have neither ``filepath`` nor ``cocoid``. COCO's own (``captions_train2017.json``): {images: [{id, file_name, coco_url}],
annotations: [{image_id, caption}]}. LAVIS's (``coco_karpathy_train.json``): a list of {image: "val2014/COCO_val2014_000000000042.jpg", caption},
the caption a text, or a list of all of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from rb.core.json_stream import stream_list, stream_lists
from rb.core.text_encoding import byte_order_mark, decode
from rb.data.prepare.common import Reason, is_id

SPLITS = ("train", "val", "test")
KARPATHY = "Karpathy's split of COCO"
FLICKR = "Karpathy's split of Flickr30k"
OFFICIAL = "COCO's own captions"
LAVIS = "LAVIS's list of Karpathy's split of COCO"
_IMAGE_FIELDS = frozenset({"filepath", "filename", "cocoid", "split", "sentences", "raw"})
_OFFICIAL = {
    "images": frozenset({"id", "file_name", "coco_url"}),
    "annotations": frozenset({"image_id", "caption"}),
}
_LAVIS = frozenset({"image", "caption"})
_FOLDER = re.compile(r"(?:train|val|test)20\d\d")
_MOST_IMAGES, _MOST_BAD = 1_000_000, 100_000  # of a file; both years of COCO have 287,000
_HEAD = 4096  # bytes that tell a list from an object


@dataclass(slots=True)
class Entry:
    """One image of an annotation file.

    Attributes:
        source: its source id.
        parts: folder and file name, below the folder of images; from the file, so not to be trusted.
        captions: whatever stands in their place.
        number: COCO's number of the image.
        split: Karpathy's; none where a file holds one split.
        problem: (reason, detail) why the image cannot be used; none where it can.
    """

    source: str
    parts: tuple[object, ...] = ()
    captions: list[object] = field(default_factory=list)
    number: int | None = None
    split: object = None
    problem: tuple[str, str] | None = None


@dataclass(frozen=True)
class CaptionFile:
    """An annotation file whose kind is known.

    Attributes:
        kind: one of the four.
        dataset: how the set is called: COCO's own splits are others than Karpathy's, so they have other names.
        split: the one that it holds; none where images say theirs (Karpathy).
    """

    path: Path
    kind: str
    dataset: str
    split: str | None

    def entries(self, notes: Counter[str]) -> list[Entry]:
        """Every image of the file, in its order, those that cannot be used too.

        Raises:
            ValueError: the file is damaged, or has no captions.
        """
        if self.kind == LAVIS:
            return _lavis(self.path, notes)
        return _official(self.path, notes) if self.kind == OFFICIAL else _karpathy(self.path, self.kind, notes)


def open_captions(path: Path) -> CaptionFile:
    """The kind of ``path``, by its first image.

    Raises:
        ValueError: another file, named with what reads it; or one split, and neither content nor name says which.
    """
    notes: Counter[str] = Counter()
    if is_list(path):
        first = next(stream_list(path, None, notes), None)
        kind = _kind_of_row(path, first)
    else:
        first = next((item for _, item in stream_lists(path, {"images": None}, notes)), None)
        kind = _kind_of_image(path, first)
    if kind == KARPATHY:
        return CaptionFile(path, kind, "coco", None)
    if kind == FLICKR:
        return CaptionFile(path, kind, "flickr30k", None)
    folder = _folder_of(first) if kind == OFFICIAL else None
    names = re.findall("|".join(SPLITS), folder or path.stem)
    if not names:
        raise ValueError(
            f"{path}: which split it holds is not in its name; let it end in _train.json, _val.json or _test.json"
        )
    year = re.search(r"20\d\d", folder or path.stem)
    dataset = f"coco{year[0]}" if kind == OFFICIAL and year else "coco"
    return CaptionFile(path, kind, dataset, names[-1])


def is_list(path: Path) -> bool:
    """Whether a JSON file is a list, by its first letter."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    mark, encoding = byte_order_mark(head)
    return decode(head[mark:], encoding, str(path), Counter(), final=False)[0].lstrip().startswith("[")


def _kind_of_row(path: Path, row: object) -> str:
    fields = set(row) if isinstance(row, dict) else set()
    if {"image", "caption"} <= fields:
        return LAVIS
    hint = "this is another file than the data set ships"
    if {"question_id", "question"} <= fields:
        hint = "these are questions, which `rb prepare vqav2` reads"
    elif {"image_id", "caption"} <= fields:
        hint = "these are predictions, which `rb score --coco-results FILE --annotations FILE` scores"
    raise ValueError(f"{path}: its first row is no image with a caption (fields image, caption); {hint}")


def _kind_of_image(path: Path, image: object) -> str:
    fields = set(image) if isinstance(image, dict) else set()
    if "sentences" in fields:
        return KARPATHY if "cocoid" in fields else FLICKR
    if "open_images_id" in fields:
        raise ValueError(f"{path}: its images are of Open Images, not COCO; `rb prepare nocaps` reads it")
    if "file_name" in fields:
        return OFFICIAL
    if "id" in fields:
        raise ValueError(
            f"{path}: its images have no file names, as in LAVIS's files for scoring (`rb score --coco-results FILE --annotations {path.name}` "
            "uses it); give coco_karpathy_train.json, coco_karpathy_val.json or coco_karpathy_test.json"
        )
    raise ValueError(
        f"{path}: its first image has neither sentences (Karpathy) nor file_name (COCO); this is another file than the data set ships"
    )


def _folder_of(image: object) -> str | None:
    """``train2014`` of ``COCO_train2014_000000000009.jpg``; of a name of 2017, which has no folder in it, by ``coco_url``."""
    texts = [image.get(name) for name in ("file_name", "coco_url")] if isinstance(image, dict) else []
    found = [match[0] for text in texts if isinstance(text, str) and (match := _FOLDER.search(text))]
    return found[0] if found else None


def _karpathy(path: Path, kind: str, notes: Counter[str]) -> list[Entry]:
    count = _Count(path)
    return [count.add(_sentences(item, kind)) for _, item in stream_lists(path, {"images": _IMAGE_FIELDS}, notes)]


class _Count:
    """Entries of a file as they come. A list of zeros takes a hundred times its bytes in memory once each is an entry with a problem."""

    def __init__(self, path: Path) -> None:
        self.path, self.images, self.bad = path, 0, 0

    def add(self, entry: Entry) -> Entry:
        """``entry``; ``ValueError`` where there are too many."""
        self.images += 1
        self.bad += entry.problem is not None
        if self.images > _MOST_IMAGES or self.bad > _MOST_BAD:
            raise ValueError(
                f"{self.path}: more than {_MOST_IMAGES:,} images, or {_MOST_BAD:,} that are none; this is another file than the data set ships"
            )
        return entry


def _sentences(item: object, kind: str) -> Entry:
    if not isinstance(item, dict):
        return Entry(f"{item!r:.80}", problem=(Reason.MALFORMED_ROW, "an image must be an object"))
    rows = item.get("sentences")
    texts = [row.get("raw") if isinstance(row, dict) else None for row in rows] if isinstance(rows, list) else []
    name, folder, split = item.get("filename"), item.get("filepath"), item.get("split")
    if kind == FLICKR:
        if not isinstance(name, str) or not PurePosixPath(name).stem:
            return Entry(f"{name!r:.80}", split=split, problem=(Reason.UNSAFE_NAME, "filename must be a text"))
        return Entry(f"flickr30k/{PurePosixPath(name).stem}", (name,), texts, None, split)
    number = item.get("cocoid")
    if not is_id(number):
        problem = (Reason.UNKNOWN_IMAGE, f"cocoid must be a whole number, got {number!r:.80}")
        return Entry(f"coco/{number}", split=split, problem=problem)
    return Entry(f"coco/{number}", (folder, name) if folder else (name,), texts, number, split)


def _official(path: Path, notes: Counter[str]) -> list[Entry]:
    entries: list[Entry] = []
    captions: dict[int, list[object]] = {}
    with_caption, count = 0, _Count(path)
    for name, item in stream_lists(path, _OFFICIAL, notes):
        if name == "images":
            entries.append(count.add(_official_image(item)))
            continue
        number: Any = item.get("image_id") if isinstance(item, dict) else None
        if not is_id(number):
            problem = (Reason.MALFORMED_ROW, f"an annotation without the number of its image: {item!r:.80}")
            entries.append(count.add(Entry("annotation", problem=problem)))
            continue
        captions.setdefault(number, []).append(item.get("caption"))
        with_caption += "caption" in item
    if not with_caption:
        raise ValueError(f"{path}: its annotations have no captions; give captions_*.json of the same split")
    for entry in entries:
        if entry.number is not None:
            entry.captions = captions.get(entry.number, [])
    known = {entry.number for entry in entries}
    for number in captions.keys() - known:
        problem = (Reason.UNKNOWN_IMAGE, "its captions stand in 'annotations', but it is not in 'images'")
        entries.append(count.add(Entry(f"coco/{number}", problem=problem)))
    return entries


def _official_image(item: object) -> Entry:
    number = item.get("id") if isinstance(item, dict) else None
    if not isinstance(item, dict) or not is_id(number):
        return Entry(f"coco/{number}", problem=(Reason.UNKNOWN_IMAGE, f"id must be a whole number, got {number!r:.80}"))
    folder = _folder_of(item)
    return Entry(f"coco/{number}", (folder, item.get("file_name")) if folder else (item.get("file_name"),), [], number)


def _lavis(path: Path, notes: Counter[str]) -> list[Entry]:
    """Rows of one image, which need not stand together, make one entry."""
    entries: dict[object, Entry] = {}
    count = _Count(path)
    for number, row in enumerate(stream_list(path, _LAVIS, notes), 1):
        image = row.get("image") if isinstance(row, dict) else None
        if not isinstance(image, str):
            problem = (Reason.MALFORMED_ROW, f"row {number}: image must be a text, got {image!r:.80}")
            entries[number] = count.add(Entry(f"row {number}", problem=problem))
            continue
        said = row.get("caption")
        entry = entries.get(image)
        if entry is None:
            entry = entries[image] = count.add(_lavis_image(image))
        entry.captions += said if isinstance(said, list) else [said]
    return list(entries.values())


def _lavis_image(image: str) -> Entry:
    number = re.search(r"(?:^|_)(\d{1,18})$", PurePosixPath(image).stem)
    if number is None:
        problem = (Reason.UNKNOWN_IMAGE, f"{image!r:.200} does not end in COCO's number of an image")
        return Entry(f"{image!r:.80}", problem=problem)
    return Entry(f"coco/{int(number[1])}", (image,), [], int(number[1]))


def in_split(entries: list[Entry], split: str, restval: bool) -> Iterator[Entry]:
    """The entries of a split of Karpathy's; ``restval`` counts as ``train`` if told so."""
    wanted: set[Any] = {split, "restval"} if split == "train" and restval else {split}
    return (entry for entry in entries if isinstance(entry.split, str) and entry.split in wanted)
