"""RefCOCO, RefCOCO+ and RefCOCOg in the forms that others made of the refer tool's files, and Ref-L4: rows with all that a region needs.

MDETR's ``finetune_refcoco_val.json`` (COCO's form, one image entry a sentence) and its copies that Ref-L4's authors reviewed; Parquet mirrors with
one row a reference (jxu124's, lmms-lab's); Ref-L4, one row a sentence. Used by `refcoco.py`, which reads the refer tool's own files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rb.core.boxes import xywh_to_xyxy
from rb.core.json_stream import stream_list, stream_lists
from rb.core.strict_json import FormatError, parse_foreign
from rb.data.prepare.common import Conversion, Reason, RejectedError, is_id
from rb.data.prepare.image_sets import ImageFile, Region, RegionImage, four_numbers
from rb.data.prepare.parquet_files import parquet_columns, read_parquet
from rb.data.prepare.parquet_images import COLUMN, ParquetImage, WithImages

SPLITS = ("train", "val", "test", "testA", "testB")
REF_L4, REF_L4_SET = "ref-l4", "ref_l4"
_IMAGE_FIELDS = frozenset({"id", "original_id", "file_name", "width", "height", "caption"})
_BOX_FIELDS = frozenset({"image_id", "original_id", "bbox", "caption_quality"})
_REF_L4_FIELDS = ("id", "caption", "bbox", "bbox_id", "image_id", "width", "height", "file_name", "split")
_LMMS_FIELDS = ("question_id", "answer", "bbox", "file_name")
_JXU_FIELDS = ("ann_id", "ref_id", "image_id", "split", "sentences", "bbox", "raw_image_info")
_COCO_FILE = re.compile(r"COCO_train2014_(\d{12})(?:_\d+)?\.jpg")
_OTHER_FILE = re.compile(r"objects365_v\d_0*(\d+)\.jpg")
_PART = re.compile(r"(\w+?)-\d{5}-of-\d{5}(?:-\w+)?\.parquet")


@dataclass
class Row:
    """One row: sentences of one region.

    Attributes:
        image: the image's source id, its file name and its (width, height) where the row has them; none where the row names no image.
        object_id: none where rows of one region are told by their box alone.
        box: x1, y1, x2, y2; called, as it may raise ``RejectedError``.
        wrong: what its reviewers found.
        place: the Parquet file and the row, from 1, that hold the image itself.
    """

    image: tuple[str, str, tuple[int, int] | None] | None
    object_id: str | None
    box: Callable[[], list[float]]
    texts: list[object]
    wrong: str | None = None
    place: tuple[Path, int] | None = None


@dataclass(frozen=True)
class Form:
    """Files of one form. ``rows`` yields the rows of a split; ``unit``: what a row is, in the plural.

    Attributes:
        raw: whether it has sentences as typed.
        images: whether the images are in the files too.
    """

    title: str
    dataset: str
    unit: str
    files: list[Path]
    splits: tuple[str, ...]
    rows: Callable[[str, str, Counter[str]], Iterator[Row]]
    raw: bool = False
    images: bool = False


def find_form(raw: Path, name: str) -> Form | None:
    """The first form of which files of the set ``name`` are in ``raw``, in the order of this file's first lines.

    Raises:
        ValueError: a Parquet file cannot be read, or all have other columns.
    """
    if name == REF_L4:
        found = [path for split in ("val", "test") for path in _named(raw, f"ref-l4-{split}", (".parquet", ".json"))]
        return _ref_l4(found) if found else None
    by = "umd" if name == "refcocog" else "unc"
    dataset = f"{name.replace('+', '_plus')}_{by}"
    for title, pattern, folder, suffix in (
        ("MDETR's files", f"finetune_{name}_{{}}.json", "mdetr_annotations", ""),
        (
            "MDETR's files as reviewed by Ref-L4's authors",
            f"{name}_{{}}_reviewed.json",
            "refcocos_annotation_reviewed",
            "_reviewed",
        ),
    ):
        files = {split: path for split in SPLITS for path in _there(raw, folder, pattern.format(split))}
        if files:
            return Form(
                title,
                dataset + suffix,
                "sentences",
                [*files.values()],
                tuple(files),
                partial(_mdetr_rows, files),
            )
    return _parquet(raw, name, dataset)


def _there(raw: Path, folder: str, name: str) -> list[Path]:
    return [path for path in (raw / name, raw / folder / name) if path.is_file()][:1]


def _named(raw: Path, stem: str, suffixes: tuple[str, ...]) -> list[Path]:
    return [path for suffix in suffixes if (path := raw / f"{stem}{suffix}").is_file()][:1]


def _of(files: dict[str, Path], split: str) -> Path:
    if split not in files:
        raise ValueError(f"{next(iter(files.values())).parent}: no file of split {split!r}; it has {', '.join(files)}")
    return files[split]


def _mdetr_rows(files: dict[str, Path], split: str, _: str, notes: Counter[str]) -> Iterator[Row]:
    """By the annotations; each has an image entry to itself, which holds the sentence."""
    path = _of(files, split)
    images: dict[object, dict[str, Any]] = {}
    doubled: set[object] = set()
    annotations: list[dict[str, Any]] = []
    lists = {"images": _IMAGE_FIELDS, "annotations": _BOX_FIELDS}
    for name, item in stream_lists(path, lists, notes):
        if not isinstance(item, dict):
            raise FormatError(f"{path}: {name}: must hold objects, got {item!a:.80}; this is another file than MDETR's")
        if name == "annotations":
            annotations.append(item)
        elif is_id(item.get("id")) and images.setdefault(item["id"], item) != item:
            doubled.add(item["id"])
    for item in annotations:
        number = item.get("image_id")
        entry = images.get(number, {}) if is_id(number) and number not in doubled else {}
        ann_id, quality = item.get("original_id"), item.get("caption_quality")
        yield Row(
            _coco_image(entry.get("original_id"), entry.get("width"), entry.get("height")),
            str(ann_id) if is_id(ann_id) else None,
            _xywh(item.get("bbox")),
            [entry.get("caption")],
            None
            if quality in (None, 1)
            else f"caption_quality is {quality!a:.20}: its reviewers found the sentence or box wrong",
        )


def _xywh(value: object) -> Callable[[], list[float]]:
    return lambda: xywh_to_xyxy(four_numbers(value, "bbox"))


def _xyxy(value: object) -> Callable[[], list[float]]:
    return lambda: [float(number) for number in four_numbers(value, "bbox")]


def _coco_image(
    image_id: object, width: object = None, height: object = None
) -> tuple[str, str, tuple[int, int] | None] | None:
    if not is_id(image_id) or image_id < 0:
        return None
    size = (width, height) if is_id(width) and is_id(height) else None
    return f"coco/{image_id}", f"COCO_train2014_{image_id:012d}.jpg", size


def _parquet(raw: Path, name: str, dataset: str) -> Form | None:
    files = sorted(path for folder in (raw, raw / "data") for path in folder.glob("*.parquet"))
    files = [path for path in files if not path.name.startswith("ref-l4-")]
    if not files:
        return None
    columns = set.intersection(*(set(parquet_columns(path)) for path in files))
    if columns.issuperset(_JXU_FIELDS):
        of_rows = {str(row["split"]) for path in files for row in _rows(path, ("split",))}
        splits = tuple(split for split in SPLITS if split in of_rows)
        return Form(
            "a Parquet mirror, one row a reference",
            dataset,
            "references",
            files,
            splits,
            lambda *to: _jxu_rows(files, *to),
            raw=True,
        )
    if columns.issuperset(_LMMS_FIELDS):
        parts = {path: found[1] for path in files if (found := _PART.fullmatch(path.name))}
        splits = tuple(split for split in SPLITS if split in parts.values())
        title = "lmms-lab's Parquet mirror, one row a reference"
        dataset = f"{name.replace('+', '_plus')}_lmms"
        return Form(
            title,
            dataset,
            "references",
            files,
            splits,
            lambda split, *_: _lmms_rows([p for p in files if parts.get(p) == split]),
            images=COLUMN in columns,
        )
    raise ValueError(
        f"{files[0]}: has the columns {', '.join(sorted(columns))[:300]}; a mirror of RefCOCO has {', '.join(_JXU_FIELDS)} (jxu124) or "
        f"{', '.join(_LMMS_FIELDS)} (lmms-lab). Other tables are read by `rb prepare custom`"
    )


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for _, row in read_parquet(path, Counter(), columns):
        assert not isinstance(row, ValueError)  # a Parquet file is damaged as a whole or not at all
        yield row


def _jxu_rows(files: list[Path], split: str, sentence: str, _: Counter[str]) -> Iterator[Row]:
    """``bbox`` is x1, y1, x2, y2 here; the size of the image is in a column of JSON."""
    for path in files:
        for row in _rows(path, _JXU_FIELDS):
            if row["split"] == split:
                info, ann_id = _object(row["raw_image_info"]), row["ann_id"]
                sentences = row["sentences"] if isinstance(row["sentences"], list) else []
                yield Row(
                    _coco_image(row["image_id"], info.get("width"), info.get("height")),
                    str(ann_id) if is_id(ann_id) else None,
                    _xyxy(row["bbox"]),
                    [one.get(sentence) if isinstance(one, dict) else None for one in sentences],
                )


def _object(text: object) -> dict[str, Any]:
    try:
        value = parse_foreign(text, "raw_image_info") if isinstance(text, str) else {}
    except FormatError:
        return {}
    return value if isinstance(value, dict) else {}


def _lmms_rows(files: list[Path]) -> Iterator[Row]:
    """``file_name`` is that of the refer tool, with the running number in it; ``answer`` are the sentences, of which none are as typed."""
    for path in files:
        for number, row in enumerate(_rows(path, _LMMS_FIELDS), 1):
            found = _COCO_FILE.fullmatch(row["file_name"]) if isinstance(row["file_name"], str) else None
            answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
            yield Row(
                _coco_image(int(found[1])) if found else None,
                None,
                _xywh(row["bbox"]),
                answers,
                place=(path, number),
            )


def _ref_l4(files: list[Path]) -> Form:
    splits = tuple(path.stem.removeprefix("ref-l4-") for path in files)

    def rows(split: str, _: str, notes: Counter[str]) -> Iterator[Row]:
        path = _of(dict(zip(splits, files, strict=True)), split)
        found = (
            _rows(path, _REF_L4_FIELDS)
            if path.suffix == ".parquet"
            else stream_list(path, frozenset(_REF_L4_FIELDS), notes)
        )
        for row in found:
            row = row if isinstance(row, dict) else {}
            box_id = row.get("bbox_id")
            yield Row(
                _ref_l4_image(row),
                box_id if isinstance(box_id, str) and box_id and box_id.isprintable() else None,
                _xywh(row.get("bbox")),
                [row.get("caption")],
            )

    return Form("Ref-L4", REF_L4_SET, "sentences", files, splits, rows)


def _ref_l4_image(row: dict[str, Any]) -> tuple[str, str, tuple[int, int] | None] | None:
    """COCO's images keep COCO's ids; those of Objects365 have their number there."""
    name, width, height = row.get("file_name"), row.get("width"), row.get("height")
    if not isinstance(name, str):
        return None
    coco, other = _COCO_FILE.fullmatch(name), _OTHER_FILE.fullmatch(name)
    source = f"coco/{int(coco[1])}" if coco else f"objects365/{other[1]}" if other else None
    return (source, name, (width, height) if is_id(width) and is_id(height) else None) if source else None


def collect(conversion: Conversion, rows: Iterator[Row], root: Path | None) -> Sequence[RegionImage]:
    """The images with their regions; rows of one object, or of one box where objects have no number, are one region.

    Args:
        root: the folder of the images; none where those inside the rows' own files are meant.
    """
    found: dict[str, RegionImage] = {}
    regions: dict[tuple[str, object], Region] = {}
    named: set[tuple[str, str]] = set()  # image and object
    for number, row in enumerate(rows, 1):
        conversion.tally.read += 1
        source, object_id = row.image[0] if row.image else f"row {number}", row.object_id or str(number)
        try:
            if row.image is None:
                raise RejectedError(Reason.UNKNOWN_IMAGE, f"row {number} names no image of COCO or Objects365")
            if row.wrong:
                raise RejectedError(Reason.REVIEWED_AS_WRONG, row.wrong)
            box = row.box()
            region = regions.get((source, row.object_id or tuple(box)))
            if region is not None and region.box != box:
                raise RejectedError(
                    Reason.MALFORMED_ROW, f"row {number}: box {box}, but {region.box} in an earlier row of it"
                )
            if region is None and (source, object_id) in named:  # rows with a number beside rows without one
                raise RejectedError(Reason.MALFORMED_ROW, f"row {number}: another region is object {object_id} already")
            captions = conversion.captions(source, row.texts, object_id)
        except RejectedError as error:
            conversion.reject(source, error.reason, error.detail, object_id)
            continue
        if region is None:
            region = regions[source, row.object_id or tuple(box)] = Region(object_id, box, [], 0)
            named.add((source, object_id))
            if source not in found:
                found[source] = RegionImage(_image_file(row, row.image, root), [])
            found[source].regions.append(region)
        region.captions += captions
        region.count += 1
    items = [*found.values()]
    return WithImages(items) if root is None else items


def _image_file(row: Row, image: tuple[str, str, tuple[int, int] | None], root: Path | None) -> ImageFile:
    source, name, size = image
    if root is not None:
        return ImageFile(source, root, (name,), size)
    assert row.place is not None
    return ParquetImage(source, row.place[0], (name,), size, row.place[1])
