"""Answers to VQAv2's questions in the official result format, held against the official annotations: ``rb score --task vqa``.

Results are a JSON list of {question_id, answer}, or a file of ``rb predict --task vqa``; annotations an object with ``annotations``: {question_id, answer_type, answers: [{answer}]}.
Each question is answered once. The accuracy is printed for each of the three normalisations, since published figures differ in it (`vqa`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rb.core.json_stream import stream_list, stream_lists
from rb.core.strict_json import FormatError
from rb.data.predictions import read_predictions
from rb.data.prepare.common import is_id
from rb.evaluation.vqa import MODES, vqa_accuracy

ALL = "all"
_RESULT = frozenset({"question_id", "answer"})
_ANNOTATION = frozenset({"question_id", "answer_type", "answers", "answer"})


def score_vqa_files(results: Path, annotations: Path) -> dict[str, Any]:
    """``questions``: how many; ``accuracy``: normalisation -> answer type, or ``all`` -> percent.

    Raises:
        FormatError: another format, or questions that miss, come twice or are unknown.
    """
    said, given = _answers(annotations), _predictions(results)
    for problem, ids in (
        ("without an answer", [i for i in said if i not in given]),
        ("not in the annotations", [i for i in given if i not in said]),
    ):
        if ids:
            raise _wrong(results, f"{len(ids):,} questions {problem}, such as {ids[0]}", annotations)
    kinds = sorted({kind for kind, _ in said.values()})
    accuracy = {}
    for mode in MODES:
        each = {question: vqa_accuracy(given[question], answers, mode) for question, (_, answers) in said.items()}
        of_kind = {kind: [each[question] for question in said if said[question][0] == kind] for kind in kinds}
        accuracy[mode] = {name: 100 * sum(v) / len(v) for name, v in ({ALL: list(each.values())} | of_kind).items()}
    return {"questions": len(said), "accuracy": accuracy}


def _wrong(path: Path, problem: str, annotations: Path) -> FormatError:
    return FormatError(f"{path}: {problem}; give one answer, a text, for each question of {annotations}")


def _predictions(path: Path) -> dict[int, str]:
    if path.suffix == ".jsonl":  # of rb predict --task vqa
        return {
            int(row.object_id): row.prediction for row in read_predictions(path)[0] if row.question and row.object_id
        }
    found: dict[int, str] = {}
    for place, row in enumerate(stream_list(path, _RESULT, Counter())):
        number, answer = (row.get("question_id"), row.get("answer")) if isinstance(row, dict) else (None, None)
        if not is_id(number) or not isinstance(answer, str):
            raise FormatError(f"{path}: row {place} must be {{question_id, answer}}, a whole number and a text")
        if number in found:
            raise FormatError(f"{path}: row {place}: question {number} comes twice")
        found[number] = answer
    return found


def _answers(path: Path) -> dict[int, tuple[str, Sequence[str]]]:
    """Question -> (answer type, the annotators' answers)."""
    found: dict[int, tuple[str, Sequence[str]]] = {}
    for place, (_, row) in enumerate(stream_lists(path, {"annotations": _ANNOTATION}, Counter())):
        rows = row.get("answers") if isinstance(row, dict) else None
        texts = [one.get("answer") if isinstance(one, dict) else None for one in rows] if isinstance(rows, list) else []
        number, kind = (row.get("question_id"), row.get("answer_type")) if isinstance(row, dict) else (None, None)
        if not is_id(number) or number in found or len(texts) < 2 or not all(isinstance(t, str) for t in texts):
            raise FormatError(
                f"{path}: annotation {place} must have a question_id that no other has, and a list of answers, each with a text"
            )
        found[number] = (kind if isinstance(kind, str) else "other", [str(text) for text in texts])
    if not found:
        raise FormatError(
            f"{path}: no annotations; give VQAv2's annotations, such as v2_mscoco_val2014_annotations.json"
        )
    return found
