"""VQAv2's files: questions (official, or LAVIS's lists) and annotations with their answers, joined and checked one by one.

Official questions: {data_subtype: "val2014", questions: [{question_id, image_id, question}]}; annotations: {annotations: [{question_id, image_id,
question_type, answer_type, answers: [{answer} x 10]}]}. LAVIS's: a list of {question_id, question, image: "val2014/COCO_val2014_000000262148.jpg"},
for training also ``answer``, a list of ten texts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rb.core.json_stream import stream_list, stream_lists
from rb.core.text import is_caption, one_line
from rb.data.formats import Question
from rb.data.prepare.coco_files import is_list
from rb.data.prepare.coco_images import coco_name
from rb.data.prepare.common import Reason, RejectedError, is_id

NUM_ANSWERS = 10
ODD_ANSWERS = f"questions with another number of answers than {NUM_ANSWERS}"
_QUESTION = frozenset({"question_id", "image_id", "question"})
_ROW = frozenset({"question_id", "question", "image", "answer"})
_ANNOTATION = frozenset({"question_id", "image_id", "question_type", "answer_type", "answers", "answer"})


@dataclass(frozen=True)
class Asked:
    """One question as it stands in a file, and the image that it is about: COCO's number, and the place of its file."""

    image: int
    parts: tuple[object, ...]
    question: Question


def subset_of(path: Path) -> str:
    """``val2014``, ``test-dev2015``, ...: which of COCO's subsets the questions of an official file are about; empty of LAVIS's."""
    if is_list(path):
        return ""
    others: dict[str, Any] = {}
    next(stream_lists(path, {"questions": _QUESTION}, Counter(), others=others), None)
    found = re.search(r"(?:train|val|test|test-dev)20\d\d", str(others.get("data_subtype", path.name)))
    return found[0] if found else ""


class Answers:
    """The answers of an annotation file by question; each text is held once. Its length is how many nobody has asked for."""

    def __init__(self, path: Path, notes: Counter[str]) -> None:
        self.path = path
        self._texts: dict[str, str] = {}
        self._rows: dict[int, Any] = {}
        self._doubled: set[int] = set()
        for _, row in stream_lists(path, {"annotations": _ANNOTATION}, notes):
            number = row.get("question_id") if isinstance(row, dict) else None
            if not is_id(number):
                notes["annotations without the number of a question, passed over"] += 1
                continue
            kinds = (self._kind(row.get("question_type")), self._kind(row.get("answer_type")))
            entry = (row.get("image_id"), self._answers(row.get("answers")), *kinds)
            if self._rows.setdefault(number, entry) != entry:
                self._doubled.add(number)

    def __len__(self) -> int:
        return len(self._rows)

    def _answers(self, rows: object) -> list[str] | None:
        """The texts of an annotation; none where one of them is no text."""
        found = []
        for row in rows if isinstance(rows, list) else ():
            text = row.get("answer") if isinstance(row, dict) else None
            if not isinstance(text, str) or not _whole(text):
                return None
            found.append(self._texts.setdefault(text, text))
        return found

    def _kind(self, value: object) -> str | None:
        return self._texts.setdefault(value, value) if isinstance(value, str) and _whole(value) else None

    def of(self, question_id: int, image: int) -> tuple[list[str], str | None, str | None]:
        """(answers, question type, answer type) of a question about ``image``, once. ``RejectedError`` where there are none."""
        if question_id not in self._rows:
            raise RejectedError(Reason.NO_ANSWER, f"{self.path} has no annotation of question {question_id}")
        if question_id in self._doubled:
            raise RejectedError(
                Reason.NO_ANSWER, f"{self.path} has two different annotations of question {question_id}"
            )
        about, answers, *kinds = self._rows.pop(question_id)
        if about != image:
            raise RejectedError(
                Reason.ANNOTATION_OF_OTHER_IMAGE,
                f"the question is about image {image}, its annotation about {about!r:.40}",
            )
        if not answers:
            raise RejectedError(Reason.NO_ANSWER, f"answers must be a list of objects with an answer, in {self.path}")
        return answers, kinds[0], kinds[1]


def _whole(text: str) -> bool:
    """Whether UTF-8 can hold ``text``: JSON can write half a character, which no reader of the shards would take."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def read_questions(
    path: Path, folder: str, answers: Answers | None, notes: Counter[str]
) -> Iterator[Asked | tuple[str, RejectedError]]:
    """Every question of a file, with its answers where there are any; or what it is called, and why it cannot be used.

    Args:
        folder: of COCO's images that an official file is about.
    """
    listed = is_list(path)
    rows = (
        stream_list(path, _ROW, notes)
        if listed
        else (row for _, row in stream_lists(path, {"questions": _QUESTION}, notes))
    )
    seen: set[int] = set()
    for place, row in enumerate(rows, 1):
        try:
            asked = _row(row, folder) if not listed else _listed_row(row)
            number = asked.question.question_id
            if number in seen:
                raise RejectedError(Reason.DUPLICATE_QUESTION, f"question {number} comes twice; the first is kept")
            if answers is not None:
                said, question_type, answer_type = answers.of(number, asked.image)
                question = Question(number, asked.question.question, said, question_type, answer_type)
                asked = Asked(asked.image, asked.parts, question)
        except RejectedError as error:
            yield f"question {place} of {path.name}", error
            continue
        seen.add(number)
        if asked.question.answers and len(asked.question.answers) != NUM_ANSWERS:
            notes[ODD_ANSWERS] += 1
        yield asked


def _row(row: object, folder: str) -> Asked:
    image = row.get("image_id") if isinstance(row, dict) else None
    if not isinstance(row, dict) or not is_id(image) or image < 0:
        raise RejectedError(Reason.MALFORMED_ROW, f"image_id must be a whole number, got {image!r:.80}")
    return Asked(image, (folder, coco_name(folder, image)), _question(row, []))


def _listed_row(row: object) -> Asked:
    image = row.get("image") if isinstance(row, dict) else None
    number = re.search(r"(?:^|_)(\d{1,18})$", PurePosixPath(image).stem) if isinstance(image, str) else None
    if not isinstance(row, dict) or number is None:
        raise RejectedError(Reason.MALFORMED_ROW, f"image must be a name that ends in COCO's number, got {image!r:.80}")
    answers = row.get("answer", [])
    if not isinstance(answers, list) or not all(isinstance(text, str) and _whole(text) for text in answers):
        raise RejectedError(Reason.MALFORMED_ROW, f"answer must be a list of texts, got {answers!r:.80}")
    return Asked(int(number[1]), (image,), _question(row, answers))


def _question(row: dict[str, Any], answers: list[str]) -> Question:
    number, text = row.get("question_id"), row.get("question")
    if not is_id(number) or number < 0:
        raise RejectedError(Reason.MALFORMED_ROW, f"question_id must be a whole number, got {number!r:.80}")
    if not isinstance(text, str) or not is_caption(text):
        raise RejectedError(
            Reason.MALFORMED_ROW, f"question {number}: question must be a text with words, got {text!r:.80}"
        )
    return Question(number, one_line(text), answers)
