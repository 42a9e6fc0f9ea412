"""The file formats as Python: records, manifests, rejected rows; prediction rows are passed on.

What each field means is said in docs/formats.md. Everything read here may come from elsewhere, so it is checked in full: unknown or
missing fields, types, finite numbers. Shards are written and read in `shards.py` and `index.py`; nothing here touches a tar.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rb.core import strict_json as strict
from rb.core.files import sha256
from rb.core.modality import MODALITIES
from rb.core.strict_json import MAX_FILE_BYTES, FormatError, checked, dumps, parse, parse_lines
from rb.core.urls import Location, Url, location
from rb.data.predictions import (
    Prediction,
    ids_digest,
    predictions_meta_path,
    read_predictions,
    sample_id,
    write_predictions,
)
from rb.data.store import MissingError, read_file
from rb.sources.feature_set import FeatureSet, parse_feature_set
from rb.sources.groups import GroupSet, parse_group_set
from rb.sources.pixels import EXIF_CHOICES

__all__ = [
    "FORMAT_VERSION",
    "INDEX_FILE",
    "MANIFEST_FILE",
    "MAX_RECORD_BYTES",
    "OBJECT_FIELDS",
    "OBJECT_OPTIONS",
    "QUESTIONS",
    "QUESTION_FIELDS",
    "RECORD_EXTENSION",
    "RECORD_FIELDS",
    "RECORD_OPTIONS",
    "REJECTED_FILE",
    "FormatError",
    "IndexEntry",
    "Manifest",
    "ObjectAnnotation",
    "Prediction",
    "Question",
    "Record",
    "Rejected",
    "ShardEntry",
    "find_manifest",
    "ids_digest",
    "manifest_digest",
    "parse_manifest",
    "parse_record",
    "predictions_meta_path",
    "read_manifest",
    "read_manifest_bytes",
    "read_predictions",
    "read_rejected",
    "rejected_row",
    "require_captions",
    "require_media",
    "sample_id",
    "write_predictions",
]

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
INDEX_FILE = "index.bin"
REJECTED_FILE = "rejected.jsonl"
RECORD_EXTENSION = "json"
QUESTIONS = "questions"  # what the samples of a set are, where they are no captions
# One record is one image or cloud, and is held twice for a moment (its bytes, its members).
MAX_RECORD_BYTES = 100 << 20
MAX_REJECTED_BYTES = 1 << 30


class UnfitRecordError(FormatError):
    """A record that the format, or its set, cannot hold."""


@dataclass(frozen=True)
class ObjectAnnotation:
    """One region of a source.

    Attributes:
        box: pixels xyxy (images) or min xyz, max xyz in the cloud's own units.
        iou: of a box that a detector proposed, with the box of the object whose captions it has (`rb prepare scan2cap`).
    """

    object_id: str
    box: list[float]
    captions: list[str]
    iou: float | None = None

    def tree(self) -> dict[str, Any]:
        """The fields in ``KEY.json``, as of `Record.tree`."""
        return {name: value for name, value in vars(self).items() if name not in OBJECT_OPTIONS or value is not None}


@dataclass(frozen=True, slots=True)  # held by the hundred thousand
class Question:
    """One question about a source.

    Attributes:
        question_id: the data set's own number, unique in it.
        answers: one of each annotator, ten in VQAv2; none where they are not published.
        question_type, answer_type: as the data set says them (``how many``, ``number``); none where it does not.
    """

    question_id: int
    question: str
    answers: list[str] = field(default_factory=list)
    question_type: str | None = None
    answer_type: str | None = None


@dataclass(frozen=True)
class Record:
    """One source with everything said about it: ``KEY.json`` in a shard, beside the image or the points.

    Attributes:
        source_id: unique within a manifest, and the same for the same source in every manifest of a modality (prefix it with where it
            comes from, ``coco/139``): the model never takes one object for another's negative. No ``#``, no control characters.
        width, height: the stored image's size in pixels; 0 for point clouds.
        captions: of the whole source.
        domain: the part of its set that a source belongs to, where scores of the parts are published too (nocaps: ``near-domain``).
        questions: about the whole source; a record of questions has no captions and no objects.
    """

    source_id: str
    dataset: str
    split: str
    width: int
    height: int
    captions: list[str]
    objects: list[ObjectAnnotation] = field(default_factory=list)
    domain: str | None = None
    questions: list[Question] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.width, self.height

    def tree(self) -> dict[str, Any]:
        """The fields of ``KEY.json``; those that a record need not have are left out where they hold nothing."""
        tree = vars(self) | {
            "objects": [o.tree() for o in self.objects],
            "questions": [{name: getattr(q, name) for name in QUESTION_FIELDS} for q in self.questions],
        }
        return {name: value for name, value in tree.items() if name not in RECORD_OPTIONS or value}

    def to_json(self) -> bytes:
        """The bytes of ``KEY.json``: one line, fixed order of fields."""
        return dumps(self.tree()).encode()


@dataclass(frozen=True)
class ShardEntry:
    """One tar file of a manifest: its name in the manifest's folder, size, and digest of the whole file."""

    file: str
    bytes: int
    sha256: str
    records: int


@dataclass(frozen=True)
class IndexEntry:
    """The index file of a manifest."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """``manifest.json``: what a folder of shards holds.

    Attributes:
        counts: ``records``, ``objects``, ``samples`` (rows of one training epoch).
        rejected: how many sources or objects were left out, by reason; the rows are in ``rejected.jsonl``.
        exif: which pixels of images with an EXIF orientation sizes and boxes refer to: ``stored``, ``upright``; none where nobody said, as
            in sets without such images. Then it is not in the file.
        sample_kind: ``questions`` where samples are questions; none, and not in the file, where they are captions.
        features: what they are, where records hold frozen features in place of media; else none, and not in the file.
        groups: what they are, where records hold groups of their cloud's points too; else none, and not in the file.
    """

    format_version: int
    name: str
    modality: str
    split: str
    counts: dict[str, int]
    rejected: dict[str, int]
    shards: list[ShardEntry]
    index: IndexEntry
    exif: str | None = None
    sample_kind: str | None = None
    features: FeatureSet | None = None
    groups: GroupSet | None = None

    def to_json(self) -> bytes:
        """The bytes of the file, indented for people."""
        tree = {name: value for name, value in asdict(self).items() if name not in _OPTIONS or value is not None}
        return (json.dumps(tree, indent=1, allow_nan=False) + "\n").encode()


@dataclass(frozen=True)
class Rejected:
    """One row of ``rejected.jsonl``: what a converter left out, and why. ``reason`` is a short fixed word, ``detail`` a sentence."""

    source: str
    object_id: str | None
    reason: str
    detail: str


OBJECT_FIELDS: dict[str, strict.Check] = {"object_id": strict.name, "box": strict.numbers, "captions": strict.texts}
OBJECT_OPTIONS: dict[str, strict.Check] = {"iou": strict.share}
RECORD_FIELDS: dict[str, strict.Check] = {
    "source_id": strict.name,
    "dataset": strict.name,
    "split": strict.name,
    "width": strict.count,
    "height": strict.count,
    "captions": strict.texts,
    "objects": strict.items,
}
RECORD_OPTIONS: dict[str, strict.Check] = {"domain": strict.name, "questions": strict.items}
QUESTION_FIELDS: dict[str, strict.Check] = {
    "question_id": strict.count,
    "question": strict.text,
    "answers": strict.texts,
    "question_type": strict.or_none(strict.text),
    "answer_type": strict.or_none(strict.text),
}
SHARD_FIELDS: dict[str, strict.Check] = {
    "file": strict.name,
    "bytes": strict.count,
    "sha256": strict.name,
    "records": strict.count,
}
_INDEX: dict[str, strict.Check] = {"file": strict.name, "bytes": strict.count, "sha256": strict.name}
_MANIFEST: dict[str, strict.Check] = {
    "format_version": strict.count,
    "name": strict.name,
    "modality": strict.name,
    "split": strict.name,
    "counts": strict.counts,
    "rejected": strict.counts,
    "shards": strict.items,
    "index": strict.anything,
}
_OPTIONS: dict[str, strict.Check] = {
    "exif": strict.name,
    "sample_kind": strict.name,
    "features": strict.anything,
    "groups": strict.anything,
}
_REJECTED: dict[str, strict.Check] = {
    "source": strict.text,
    "object_id": strict.or_none(strict.name),
    "reason": strict.name,
    "detail": strict.text,
}


def parse_record(data: bytes, where: str) -> Record:
    """``KEY.json`` to a ``Record``, its fields and types checked; ``check_record.py`` says whether it fits a modality."""
    raw = dict(checked(parse(data, where), where, RECORD_FIELDS, RECORD_OPTIONS))
    raw["objects"] = [
        ObjectAnnotation(**checked(item, f"{where}: objects[{i}]", OBJECT_FIELDS, OBJECT_OPTIONS))
        for i, item in enumerate(raw["objects"])
    ]
    if "questions" in raw:
        raw["questions"] = [
            Question(**checked(item, f"{where}: questions[{i}]", QUESTION_FIELDS))
            for i, item in enumerate(raw["questions"])
        ]
    return Record(**raw)


def find_manifest(place: Location | str) -> Location:
    """``place`` itself, or ``manifest.json`` in it where it is a folder; ``ValueError`` if there is none.

    A URL that does not end in ``.json`` is a folder's; whether there is a manifest shows when it is read.
    """
    path = location(place)
    if isinstance(path, Url):
        return path if path.name.endswith(".json") else path / MANIFEST_FILE
    found = path / MANIFEST_FILE if path.is_dir() else path
    if not found.is_file():
        raise ValueError(
            f"{found}: no manifest there; give a manifest.json or its folder (`rb prepare` writes one, `rb data index` adopts tars)"
        )
    return found


def read_manifest(place: Location | str) -> Manifest:
    """A manifest, checked in itself; whether its files are there is checked by ``ManifestReader``."""
    path = find_manifest(place)
    return parse_manifest(read_manifest_bytes(path), str(path))


def read_manifest_bytes(path: Location) -> bytes:
    """The content of a manifest's file, for its digest and ``parse_manifest``."""
    return read_file(path, MAX_FILE_BYTES)


def parse_manifest(content: bytes, where: str) -> Manifest:
    """``read_manifest`` of bytes; ``where`` names the file in errors."""
    raw = dict(checked(parse(content, where), where, _MANIFEST, _OPTIONS))
    if raw.get("exif") not in (None, *EXIF_CHOICES):
        raise FormatError(f"{where}: exif {raw['exif']!r} is not one of {', '.join(EXIF_CHOICES)}")
    if raw.get("sample_kind") not in (None, QUESTIONS):
        raise FormatError(f"{where}: sample_kind {raw['sample_kind']!r} is unknown; known: {QUESTIONS}")
    if raw["format_version"] != FORMAT_VERSION:
        raise FormatError(
            f"{where}: format_version {raw['format_version']} is not {FORMAT_VERSION}; make the shards again with this version"
        )
    if raw["modality"] not in MODALITIES:
        raise FormatError(f"{where}: unknown modality {raw['modality']!r}; known: {', '.join(MODALITIES)}")
    missing = [name for name in ("records", "objects", "samples") if name not in raw["counts"]]
    if missing:
        raise FormatError(f"{where}: counts lacks {missing[0]!r}")
    raw["shards"] = [
        ShardEntry(**checked(item, f"{where}: shards[{i}]", SHARD_FIELDS)) for i, item in enumerate(raw["shards"])
    ]
    raw["index"] = IndexEntry(**checked(raw["index"], f"{where}: index", _INDEX))
    for entry in (*raw["shards"], raw["index"]):
        if Path(entry.file).name != entry.file or entry.file in (".", ".."):
            raise FormatError(f"{where}: file name {entry.file!r} must not leave the manifest's folder")
    if "features" in raw:
        raw["features"] = parse_feature_set(raw["features"], f"{where}: features")
        _fits_a_record(raw["features"].num_bytes, f"{where}: features")
    if "groups" in raw:
        raw["groups"] = parse_group_set(raw["groups"], f"{where}: groups")
        _fits_a_record(raw["groups"].num_bytes, f"{where}: groups")
    return Manifest(**raw)


def _fits_a_record(num_bytes: int, where: str) -> None:
    if num_bytes > MAX_RECORD_BYTES:
        raise FormatError(f"{where}: {num_bytes:,} bytes a source, a record has at most {MAX_RECORD_BYTES:,}")


def require_media(manifest: Manifest, path: Location) -> None:
    """``ValueError`` where the records of the manifest at ``path`` hold frozen features, which only training reads."""
    if manifest.features is not None:
        raise ValueError(
            f"{path}: holds frozen features, which only data.train can list; give the set that they were made from "
            f"(manifest digest {manifest.features.made_from})"
        )


def require_captions(manifest: Manifest, path: Location) -> None:
    """``ValueError`` where the samples of the manifest at ``path`` are questions."""
    if manifest.sample_kind == QUESTIONS:
        raise ValueError(
            f"{path}: its samples are questions, so there is no caption to train on, to validate or to predict; give a manifest of captions "
            "(rb predict answers questions with --task vqa)"
        )


def manifest_digest(content: bytes) -> str:
    """sha256 of a manifest's bytes: the identity of a data set, since it holds the digests of index and shards."""
    return sha256(content)


def rejected_row(row: Rejected) -> str:
    """One line of ``rejected.jsonl``."""
    return dumps(asdict(row)) + "\n"


def read_rejected(path: Location) -> list[Rejected]:
    """All rows of a ``rejected.jsonl``. None if the file is missing: sets that other programs made have no such file."""
    try:
        content = read_file(path, MAX_REJECTED_BYTES)
    except (FileNotFoundError, MissingError):
        return []
    return [Rejected(**checked(row, where, _REJECTED)) for where, row in parse_lines(content, str(path))]
