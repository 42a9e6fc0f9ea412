"""Whether a record fits a modality: called for every record that is written or indexed. Its fields are checked by ``formats.py``."""

from __future__ import annotations

from dataclasses import asdict

from rb.core.modality import modality_spec
from rb.core.strict_json import FormatError, checked
from rb.core.text import is_caption
from rb.data.formats import OBJECT_FIELDS, OBJECT_OPTIONS, QUESTION_FIELDS, RECORD_FIELDS, RECORD_OPTIONS, Record
from rb.sources.table import source_of


def check_record(record: Record, modality: str, where: str) -> None:
    """Whether ``record`` can be used for ``modality``: the ids, the size, the boxes, a text for everything that makes a sample.

    Raises:
        FormatError: it cannot; the message says what a converter should have done (clip the box, reject the source, ...).
    """
    spec, source = modality_spec(modality), source_of(modality)
    checked(record.tree(), where, RECORD_FIELDS, RECORD_OPTIONS)
    if "#" in record.source_id:
        raise FormatError(
            f"{where}: source_id {record.source_id!r} must not hold '#', which separates source and object in sample ids"
        )
    source.check_size(record.size, where)
    if record.questions:
        _check_questions(record, spec.regional, where)
        return
    seen: set[str] = set()
    for i, item in enumerate(record.objects):
        place = f"{where}: objects[{i}]"
        checked(item.tree(), place, OBJECT_FIELDS, OBJECT_OPTIONS)
        if item.object_id in seen:
            raise FormatError(
                f"{place}: object_id {item.object_id!r} is used twice in this record; put its captions together"
            )
        seen.add(item.object_id)
        problem = source.box_problem(item.box, record.size)
        if problem:
            raise FormatError(f"{place}: box {item.box}: {problem}; clip it, or reject the object")
        if not all(is_caption(caption) for caption in item.captions) or (spec.regional and not item.captions):
            raise FormatError(
                f"{place}: a caption without words (or nan, None, null, N/A), or none at all; reject the object"
            )
    if not all(is_caption(caption) for caption in record.captions):
        raise FormatError(f"{where}: a caption without words (or nan, None, null, N/A); leave it out")
    if spec.regional and not record.objects:
        raise FormatError(f"{where}: no object, so nothing to train {modality} on; reject the source")
    if not spec.regional and not record.captions:
        raise FormatError(f"{where}: no caption, so nothing to train {modality} on; reject the source")


def _check_questions(record: Record, regional: bool, where: str) -> None:
    """Questions are of a whole source and stand alone in its record; answers may be any text, also an empty one."""
    if regional or record.captions or record.objects:
        raise FormatError(
            f"{where}: questions beside captions or objects, or of regions; questions are a set of whole sources without either"
        )
    seen: set[int] = set()
    for i, item in enumerate(record.questions):
        place = f"{where}: questions[{i}]"
        checked(asdict(item), place, QUESTION_FIELDS)
        if item.question_id in seen:
            raise FormatError(f"{place}: question_id {item.question_id} is used twice in this record; keep one")
        seen.add(item.question_id)
        if not is_caption(item.question):
            raise FormatError(f"{place}: a question without words; leave it out")
