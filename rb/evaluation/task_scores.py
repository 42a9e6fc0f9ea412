"""Scores of the tasks that rank or answer (zero-shot classes, retrieval, VQA), from the rows of ``rb predict`` alone.

Used by ``rb score --task`` and by plans of evaluations, which keep them as the ``metrics.json`` of a cell.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from rb.core.files import file_sha256, write_json
from rb.core.patient import attempt
from rb.core.strict_json import FormatError
from rb.core.tasks import RETRIEVAL, VQA, ZEROSHOT
from rb.data.predictions import Prediction, read_predictions
from rb.evaluation.ranking import Rankings, score_classes, score_retrieval, texts_of
from rb.evaluation.scoring import log_task, task_result
from rb.evaluation.vqa import MODES, accuracy_name, vqa_accuracy


@dataclass(frozen=True)
class TaskScores:
    """What was found, all from 0 to 1.

    Attributes:
        protocol: what the scores depend on, for people.
        chance: of a ranking, what drawing lots would give.
        parts: part of the set, such as an answer type -> its scores.
    """

    scores: dict[str, float]
    protocol: str
    chance: dict[str, float] = field(default_factory=dict)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)


def zero_shot_scores(rows: Sequence[Prediction], meta: Mapping[str, Any]) -> TaskScores:
    """``FormatError``: rows of another task."""
    told = meta.get("ranking") or {}
    classes = told.get("classes") or list({row.references[0] for row in rows})
    prompts = ", ".join(told.get("templates", ())) or "unknown prompts"
    protocol = f"{len(classes):,} classes, {prompts}; ties count as the worst rank"
    return _of_rankings(score_classes(rows, len(classes)), protocol)


def retrieval_scores(rows: Sequence[Prediction], meta: Mapping[str, Any]) -> TaskScores:
    """``FormatError``: rows of another task."""
    top_k = (meta.get("ranking") or {}).get("top_k")
    different = len({text for row in rows for text in texts_of(row)})
    captions = sum(len(row.references) for row in rows)
    parts = [f"{different:,} different texts of {captions:,}"]
    if different < captions:
        parts[0] += " (one that several examples have is right for each)"
    if top_k:
        parts.append(f"ITM ranks the best {top_k} of ITC again")
    return _of_rankings(score_retrieval(rows), "; ".join([*parts, "ties count as the worst rank"]))


def vqa_scores(rows: Sequence[Prediction], _meta: Mapping[str, Any]) -> TaskScores:
    """Accuracy by each normalisation, of all and of each answer type; the annotators' answers are the rows' references.

    Raises:
        FormatError: a row without a question, or without two annotators' answers.
    """
    for row in rows:
        if row.question is None or len(row.references) < 2:
            raise FormatError(
                f"id {row.id!r}: needs a question and the answers of two annotators or more; predict with --task vqa on a set that has them"
            )
    each = [{accuracy_name(mode): vqa_accuracy(row.prediction, row.references, mode) for mode in MODES} for row in rows]
    parts: dict[str, dict[str, Any]] = {}
    for part in sorted({row.part for row in rows if row.part}):
        own = [values for row, values in zip(rows, each, strict=True) if row.part == part]
        parts[part] = {"num_examples": len(own), "scores": _means(own)}
    return TaskScores(_means(each), "accuracy by three public normalisations", parts=parts)


SCORERS: dict[str, Callable[[Sequence[Prediction], Mapping[str, Any]], TaskScores]] = {
    ZEROSHOT: zero_shot_scores,
    RETRIEVAL: retrieval_scores,
    VQA: vqa_scores,
}


def score_task(task: str, predictions: Path, out: Path, use_mlflow: bool = True) -> dict[str, Any]:
    """Scores one predictions file and writes its ``metrics.json``; returns what that holds.

    Raises:
        FormatError: no rows, or rows of another task.
    """
    started = time.time()
    rows, meta = read_predictions(predictions)
    if not rows:
        raise FormatError(f"{predictions}: no predictions in it; predict again")
    found = SCORERS[task](rows, meta)
    result = task_result(predictions, found.scores, found.protocol) | {
        "task": task,
        "num_references": sum(len(row.references) for row in rows),
        "predictions_sha256": file_sha256(predictions),
        **({"chance": found.chance} if found.chance else {}),
        **({"parts": found.parts} if found.parts else {}),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, result)
    if use_mlflow:
        attempt(out, partial(log_task, task, predictions, result, started))
    return result


def _of_rankings(found: Rankings, protocol: str) -> TaskScores:
    scores = {f"{who}_{name}": value for who, values in found.scores.items() for name, value in values.items()}
    return TaskScores(scores, protocol, found.chance)


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: fmean(row[name] for row in rows) for name in rows[0]}
