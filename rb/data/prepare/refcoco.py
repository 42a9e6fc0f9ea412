"""RefCOCO, RefCOCO+ and RefCOCOg as the refer tool has them (``instances.json``, ``refs(<split by>).p``) to shards of image regions.

Where these are not in the raw folder, the forms of `refcoco_forms.py` are looked for: MDETR's JSON, Parquet mirrors, Ref-L4.
One record per image with all its objects of a split, each with all its sentences. Source ids are ``coco/<image id>``, object ids the
annotation's id. Images are found by ``instances.json``: a reference's own ``file_name`` has a running number in it and is no file of COCO.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from rb.core.boxes import xywh_to_xyxy
from rb.core.modality import IMAGE_REGION
from rb.data.prepare.common import (
    Conversion,
    Reason,
    RejectedError,
    add_exif,
    is_id,
    objects_of,
    read_json,
    require_raw,
)
from rb.data.prepare.image_sets import ImageFile, Region, RegionImage, check_box, four_numbers, write_regions
from rb.data.prepare.plan import Plan, RawSet
from rb.data.prepare.refcoco_forms import REF_L4, REF_L4_SET, SPLITS, Form, collect, find_form
from rb.data.prepare.safe_pickle import converted, load_plain_pickle

NAMES = ("refcoco", "refcoco+", "refcocog", REF_L4)
SPLITS_BY = ("google", "unc", "umd")
REFUSED = (
    "RefCLEF (refclef, in UNC's and Berkeley's split) is on the photos of ImageCLEF's SAIAPR TC-12, not on COCO's, and has its own boxes and "
    "file names, which are not read; prepare one of {}, or give RefCLEF's rows as a table to `rb prepare custom`"
)
LAYOUT = """  RAW/instances.json           (or RAW/refcoco/instances.json and so on, as the refer tool has them)
  RAW/refs(google).p           or refs(unc).p, refs(umd).p by --split-by; refs(...).json with the same content is read too
  RAW/images/train2014/COCO_train2014_000000000009.jpg ...   (or --images DIR, the folder of the files themselves)
Without instances.json the first of these that RAW holds is read (RefCOCO and RefCOCO+ in UNC's split, RefCOCOg in UMD's):
  RAW/finetune_refcoco_val.json ...      MDETR's, also in RAW/mdetr_annotations/; refcoco+, refcocog by --name
  RAW/refcoco_val_reviewed.json ...      the same, reviewed by Ref-L4's authors; also in RAW/refcocos_annotation_reviewed/
  RAW/*.parquet or RAW/data/*.parquet    mirrors with one row a reference: jxu124's, lmms-lab's (with its images inside; or --images DIR)
and by --name ref-l4 alone:
  RAW/ref-l4-val.parquet, RAW/ref-l4-test.parquet (or .json)   with the files of images.tar.gz in RAW/images/"""
_FIELDS = frozenset(
    {"images", "annotations", "id", "image_id", "file_name", "width", "height", "bbox"}  # no polygons
)
_REF_FIELDS = frozenset({"ref_id", "ann_id", "image_id", "split", "sentences", "sent", "raw"})
_Json = dict[str, Any]


def open_raw(
    raw: Path,
    name: str = "refcoco",
    split_by: str | None = None,
    sentence: str = "sent",
    drop_shared_images: bool = False,
    images: Path | None = None,
    exif: str | None = None,
) -> RawSet:
    """One set of the refer tool. An item is a reference (one object in one person's choice; 50,000 in RefCOCO).

    A split is named as in the file. ``test`` means all splits whose name holds it where none is called so (UNC's testA and testB), as in
    refer.

    Args:
        split_by: of the refer tool's files, ``google`` if not said; other forms have only one.
        sentence: ``sent`` (cleaned) or ``raw`` (as typed).
        drop_shared_images: of ``train``, leave out the images that also occur in another split (google's splits share images).
        images: the folder of the image files, if not ``raw/images/train2014``.
        exif: as of `rb.data.shard_writer.ShardWriter`.

    Raises:
        ValueError: a raw file is missing, damaged or unsafe, or of a set that is not read.
    """
    if name == "refclef" or split_by == "berkeley":
        raise ValueError(REFUSED.format(", ".join(NAMES)))
    folder = raw if (raw / "instances.json").is_file() or not (raw / name).is_dir() else raw / name
    if name == REF_L4 or not (folder / "instances.json").is_file():
        form = find_form(folder, name)
        if form is not None:
            _check_options(form, folder, split_by, sentence, drop_shared_images)
            return _open_form(form, folder, _form_images(form, raw, folder, images), sentence, exif)
        if name == REF_L4:
            require_raw(folder / "ref-l4-val.parquet", LAYOUT)
    split_by = split_by or "google"
    notes: Counter[str] = Counter()
    instances = read_json(require_raw(folder / "instances.json", LAYOUT), _FIELDS, notes)
    if not isinstance(instances, dict):
        raise ValueError(f"{folder / 'instances.json'}: must be an object with the fields 'images' and 'annotations'")
    table = _by_id(instances, "images", folder), _by_id(instances, "annotations", folder)
    file, refs = _read_refs(folder, split_by, notes)
    root = _images(raw, folder, images)
    dataset = f"{name.replace('+', '_plus')}_{split_by}"

    def plan(split: str) -> Plan:
        chosen, shared = _choose(refs, split, file)
        if drop_shared_images and split != "train":
            raise ValueError(
                f"--drop-shared-images is for split 'train', got {split!r}: the other splits stay as they are"
            )
        other = "another split" if split == "train" else "train"
        dropped = shared if drop_shared_images else set()
        counted = notes.copy()
        counted[f"images shared with {other}"] = len(shared)
        return Plan(
            dataset,
            IMAGE_REGION,
            split,
            "references",
            collect=lambda conversion: _collect(conversion, chosen, *table, sentence, dropped, root),
            read=lambda item: item.file.read(exif),
            write=lambda conversion, item, image: write_regions(conversion, item, image, dataset, split),
            notes=counted,
            exif=exif,
        )

    found = {str(ref["split"]) for ref in refs if ref.get("split") is not None}
    return RawSet(tuple(s for s in SPLITS if s in found), [folder / "instances.json", file], plan)


def _check_options(form: Form, folder: Path, split_by: str | None, sentence: str, drop_shared_images: bool) -> None:
    """``ValueError`` for options of the refer tool's files that a form cannot follow."""
    held = f"{folder} holds {form.title}, of the set {form.dataset}"
    if split_by is not None and f"_{split_by}" not in form.dataset:
        raise ValueError(f"--split-by {split_by}: {held}; leave --split-by out, or put the refer tool's files there")
    if sentence == "raw" and not form.raw:
        raise ValueError(f"--sentence raw: {held}, which has the cleaned sentences only; leave --sentence out")
    if drop_shared_images:
        raise ValueError(f"--drop-shared-images: {held}, whose splits share no images; leave the option out")


def _open_form(form: Form, folder: Path, root: Path | None, sentence: str, exif: str | None) -> RawSet:
    def plan(split: str) -> Plan:
        if split not in form.splits:
            raise ValueError(f"{folder}: {form.title}: no split {split!r}; there is {', '.join(form.splits)}")
        return Plan(
            form.dataset,
            IMAGE_REGION,
            split,
            form.unit,
            collect=lambda conversion: collect(conversion, form.rows(split, sentence, conversion.tally.notes), root),
            read=lambda item: item.file.read(exif),
            write=lambda conversion, item, image: write_regions(conversion, item, image, form.dataset, split),
            exif=exif,
        )

    return RawSet(form.splits, form.files, plan, f"{folder}: {form.title}, as the set {form.dataset}")


def _by_id(instances: _Json, kind: str, folder: Path) -> dict[int, _Json]:
    """By their numbers; a number that two different rows have says nothing of either, so that it is left out."""
    rows = objects_of(instances.get(kind), f"{folder / 'instances.json'}: {kind}")
    found: dict[int, _Json] = {}
    doubled = {row["id"] for row in rows if is_id(row.get("id")) and found.setdefault(row["id"], row) != row}
    return {number: row for number, row in found.items() if number not in doubled}


def _read_refs(folder: Path, split_by: str, notes: Counter[str]) -> tuple[Path, list[_Json]]:
    """The references, from JSON where someone converted them, else from the pickle."""
    file = folder / f"refs({split_by}).p"
    trusted = converted(file)
    if trusted.is_file():
        remedy = f"remove it, and {file.name} is read again" if file.is_file() else "convert the pickle again"
        return trusted, objects_of(read_json(trusted, _REF_FIELDS, notes, remedy), str(trusted))
    others = [by for by in SPLITS_BY if (folder / f"refs({by}).p").is_file()]
    if others and not file.is_file():
        raise ValueError(
            f"{file}: not found, but those of another split are there: say --split-by {' or '.join(others)}"
        )
    require_raw(file, LAYOUT)
    return file, objects_of(load_plain_pickle(file), str(file))


def _choose(refs: list[_Json], split: str, file: Path) -> tuple[list[_Json], set[int]]:
    """The references of a split, and the ids of the images that it shares: of train with any other split, of another split with train."""
    names = {str(ref["split"]) for ref in refs if ref.get("split") is not None}
    if not names:
        raise ValueError(
            f"{file}: its rows have no field 'split', which the refer tool's refs have beside ref_id, ann_id, image_id and sentences; "
            "this is another file"
        )
    wanted = {split} if split in names else {name for name in names if split == "test" and "test" in name}
    if not wanted:
        raise ValueError(f"{file}: no split {split!r}; it has {', '.join(sorted(names))}")
    rest = names - wanted if split == "train" else {"train"} - wanted
    images: defaultdict[bool, set[int]] = defaultdict(set)
    for ref in refs:
        own, foreign = str(ref.get("split")) in wanted, str(ref.get("split")) in rest
        if (own or foreign) and is_id(ref.get("image_id")):
            images[own].add(ref["image_id"])
    return [ref for ref in refs if str(ref.get("split")) in wanted], images[True] & images[False]


def _images(raw: Path, folder: Path, images: Path | None) -> Path:
    """The folder of train2014's files, as told or found."""
    if images is None:
        return _image_folder(raw, folder)
    inner = require_raw(images, LAYOUT) / "train2014"  # the folder that `rb prepare coco` is given
    return inner if inner.is_dir() else images


def _form_images(form: Form, raw: Path, folder: Path, images: Path | None) -> Path | None:
    """The folder of a form's images; none where those inside its files are read."""
    if form.images and images is None:
        return None
    if form.dataset != REF_L4_SET:
        return _images(raw, folder, images)
    own = raw / "images" if (raw / "images").is_dir() else raw
    return own if images is None else require_raw(images, LAYOUT)


def _image_folder(raw: Path, folder: Path) -> Path:
    """Where the refer tool and its users keep COCO's train2014."""
    places = [
        base / inner
        for base in (raw, folder, raw.parent)
        for inner in ("images/train2014", "images/mscoco/images/train2014")
    ]
    found = [place for place in (*places, raw / "train2014") if place.is_dir()]
    return found[0] if found else require_raw(places[0], LAYOUT)


def _collect(
    conversion: Conversion,
    refs: list[_Json],
    images: dict[int, _Json],
    annotations: dict[int, _Json],
    sentence: str,
    dropped: set[int],
    root: Path,
) -> list[RegionImage]:
    """The images with their objects, of the references that can be used as far as the annotations say."""
    found: dict[int, dict[int, Region]] = {}  # image id -> annotation id -> region
    seen: set[int] = set()
    for ref in refs:
        conversion.tally.read += 1
        image_id, object_id = ref.get("image_id"), str(ref.get("ann_id"))
        source = f"coco/{image_id}"
        try:
            ref_id, ann_id = ref.get("ref_id"), ref.get("ann_id")
            if not (is_id(image_id) and image_id in images):
                raise RejectedError(
                    Reason.UNKNOWN_IMAGE,
                    f"reference {ref_id}: image {image_id!r:.80} is not in instances.json, or comes twice",
                )
            if not (is_id(ann_id) and ann_id in annotations):
                raise RejectedError(
                    Reason.UNKNOWN_ANNOTATION,
                    f"reference {ref_id}: ann_id {ann_id!r:.80} is not in instances.json, or comes twice",
                )
            assert isinstance(image_id, int)
            assert isinstance(ann_id, int)
            if is_id(ref_id) and ref_id in seen:
                raise RejectedError(Reason.DUPLICATE_SOURCE, f"reference {ref_id} comes twice; the first is kept")
            if image_id in dropped:
                raise RejectedError(Reason.SHARED_IMAGE, "the image also occurs in another split")
            box = _box(annotations[ann_id], image_id, images[image_id])
            sentences = ref.get("sentences")
            rows = sentences if isinstance(sentences, list) else []
            texts = [row.get(sentence) if isinstance(row, dict) else None for row in rows]
            captions = conversion.captions(source, texts, object_id)
        except RejectedError as error:
            conversion.reject(source, error.reason, error.detail, object_id)
            continue
        if is_id(ref_id):
            seen.add(ref["ref_id"])
        in_image = found.setdefault(image_id, {})
        if ann_id in in_image:
            conversion.tally.notes["references to an object that has one, put together"] += 1
            in_image[ann_id].captions += captions
            in_image[ann_id].count += 1
        else:
            in_image[ann_id] = Region(object_id, box, captions)
    return [
        RegionImage(_file(image_id, images[image_id], root), list(in_image.values()))
        for image_id, in_image in found.items()
    ]


def _file(image_id: int, image: _Json, root: Path) -> ImageFile:
    return ImageFile(f"coco/{image_id}", root, (image.get("file_name"),), (image["width"], image["height"]))


def _box(annotation: _Json, image_id: int, image: _Json) -> list[float]:
    """The box in pixels xyxy, not yet cut to the image."""
    if annotation.get("image_id") != image_id:
        raise RejectedError(
            Reason.ANNOTATION_OF_OTHER_IMAGE,
            f"annotation {annotation['id']} belongs to image {annotation.get('image_id')!r:.80}",
        )
    numbers, width, height = annotation.get("bbox"), image.get("width"), image.get("height")
    if not (isinstance(width, int) and isinstance(height, int) and is_id(width) and is_id(height)):
        raise RejectedError(
            Reason.UNKNOWN_IMAGE, f"image {image_id}: width and height are {(width, height)!r:.80} in instances.json"
        )
    box = xywh_to_xyxy(four_numbers(numbers, f"annotation {annotation['id']}: bbox"))
    check_box(box, (width, height), f"annotation {annotation['id']}")
    return box


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``rb prepare refcoco``."""
    parser.add_argument("--name", default="refcoco", choices=(*NAMES, "refclef"), help="which set (default: refcoco)")
    parser.add_argument("--split-by", choices=(*SPLITS_BY, "berkeley"), help="google is the paper's (default)")
    parser.add_argument("--sentence", default="sent", choices=("sent", "raw"), help="cleaned (default) or as typed")
    parser.add_argument("--images", type=Path, help="the folder of COCO's train2014 files")
    add_exif(parser)
    parser.add_argument(
        "--drop-shared-images", action="store_true", help="leave out images of train that also occur in another split"
    )
