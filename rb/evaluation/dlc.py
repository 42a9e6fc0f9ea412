"""DLC-Bench's score from answers that a judge gave: ``rb score --task dlc``. No judge and no model is called here.

Protocol (NVlabs/describe-anything): an answer earns the points of the choice that the judge picked; an object that the judge did not
recognise earns at most 0 an answer; an object's score is the mean of its answers, positives and negatives apart; then the mean over
objects, and the mean of the two. Objects without negatives count among positives only. Where no choice was picked the answer earns 0, and
is counted. ``avg`` of a published file is not the published mean, so summaries of a file are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rb.core.files import file_sha256
from rb.core.patient import attempt
from rb.core.strict_json import FormatError, read
from rb.tracking import ScoredSet, log_evaluation

KINDS = ("positive", "negative")
_LETTER = re.compile(r"\s*\(?([A-Z])[.):]")  # how an answer names its choice, where the judge's program did not


@dataclass(frozen=True)
class DlcScore:
    """Means over objects, from -1 to 1.

    Attributes:
        no_choice: answers in which the judge picked no choice, by object, kind and number.
        objects: kind -> object -> its score.
        answers: how many there are.
    """

    positives: float
    negatives: float
    no_choice: list[str] = field(default_factory=list)
    objects: dict[str, dict[str, float]] = field(default_factory=dict)
    answers: int = 0

    @property
    def mean(self) -> float:
        """The published mean: of positives and negatives."""
        return (self.positives + self.negatives) / 2


def score_dlc_files(judged: Path, questions: Path) -> DlcScore:
    """Of a published ``*_eval.json``, by the points in ``qa.json``. ``FormatError``: another format, or files that do not belong together."""
    return score_dlc(read(judged), read(questions), str(judged))


def score_dlc(judged: object, questions: object, where: str) -> DlcScore:
    """As above, of what the files hold; ``where`` stands in errors."""
    asked = {name: _questions(rows, f"{where}: question of {name}") for name, rows in _object(questions, where).items()}
    given = {name: entry for name, entry in _object(judged, where).items() if isinstance(entry, dict)}
    for name in [*(n for n in asked if n not in given), *(n for n in given if n not in asked)]:
        raise _wrong(where, f"object {name} is missing in the {'judged answers' if name in asked else 'questions'}")
    points = {name: _points_of(entry, asked[name], f"{where}: object {name}") for name, entry in given.items()}
    objects: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        earned = {name: [value or 0.0 for value in by_kind[kind]] for name, by_kind in points.items() if by_kind[kind]}
        if not earned:
            raise _wrong(where, f"no {kind} answers at all")
        for name, values in earned.items():
            if not given[name]["recognition_result"]:
                earned[name] = [min(value, 0.0) for value in values]
        objects[kind] = {name: sum(values) / len(values) for name, values in earned.items()}
    every = [(f"{n} {k} {i}", v) for n, kinds in points.items() for k in KINDS for i, v in enumerate(kinds[k])]
    positives, negatives = (sum(scores.values()) / len(scores) for scores in objects.values())
    return DlcScore(positives, negatives, [place for place, value in every if value is None], objects, len(every))


def _wrong(where: str, problem: str) -> FormatError:
    return FormatError(f"{where}: {problem}; give the judged answers and the questions of one benchmark")


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(where, f"must map objects to their answers, got {type(value).__name__}")
    return value


def _questions(rows: object, where: str) -> dict[str, list[Mapping[str, Any]]]:
    """Of one object, by kind."""
    found: dict[str, list[Mapping[str, Any]]] = {kind: [] for kind in KINDS}
    for row in rows if isinstance(rows, list) else [rows]:
        if not isinstance(row, dict) or row.get("type") not in KINDS or not _are_choices(row.get("choices")):
            raise _wrong(where, "must have a type, positive or negative, and choices, each a text and its points")
        found[row["type"]].append(row)
    return found


def _are_choices(choices: object) -> bool:
    return isinstance(choices, list) and all(
        isinstance(one, list) and len(one) == 2 and isinstance(one[0], str) and _is_number(one[1]) for one in choices
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _points_of(
    entry: Mapping[str, Any], asked: Mapping[str, list[Mapping[str, Any]]], where: str
) -> dict[str, list[float | None]]:
    """Of one object's answers, by kind; none where no choice was picked."""
    recognised = entry.get("recognition_result")
    if not isinstance(recognised, bool):
        raise _wrong(where, f"recognition_result must be true or false, got {recognised!r:.80}")
    found = {}
    for kind in KINDS:
        answers = entry.get(f"details_{kind}s", [])
        if not isinstance(answers, list) or len(answers) != len(asked[kind]):
            number = len(answers) if isinstance(answers, list) else repr(answers)[:80]
            raise _wrong(where, f"{number} {kind} answers to {len(asked[kind])} questions")
        pairs = enumerate(zip(answers, asked[kind], strict=True))
        found[kind] = [_points(answer, question, f"{where}: {kind} answer {n}") for n, (answer, question) in pairs]
    return found


def _points(answer: object, question: Mapping[str, Any], where: str) -> float | None:
    """Points of the picked choice; none where none was picked."""
    if not isinstance(answer, dict):
        raise _wrong(where, f"must be an object, got {type(answer).__name__}")
    choices = question["choices"]
    if answer.get("question") != question.get("question") or answer.get("choices") != choices:
        raise _wrong(where, "is of another question than the questions' file has there")
    picked = answer["pred_index"] if "pred_index" in answer else _named(answer.get("pred_answer"), len(choices))
    if picked is None or picked == -1:
        return None
    if not isinstance(picked, int) or isinstance(picked, bool) or not 0 <= picked < len(choices):
        raise _wrong(where, f"pred_index must be one of {len(choices)} choices, got {picked!r:.80}")
    return float(choices[picked][1])


def _named(answer: object, choices: int) -> int | None:
    """The choice that an answer such as "C. The color ..." names."""
    letter = _LETTER.match(answer) if isinstance(answer, str) else None
    number = ord(letter[1]) - ord("A") if letter else choices
    return number if number < choices else None


def log_dlc(score: DlcScore, judged: Path, questions: Path, started: float) -> None:
    """The means to MLflow by way of a journal beside the judge's answers, as ``eval/dlc_bench/test/dlc/positives`` and so on."""
    means = {"positives": score.positives, "negatives": score.negatives, "mean": score.mean}
    name = f"{judged.stem}-dlc"
    log = partial(
        log_evaluation,
        {f"dlc/{kind}": value for kind, value in means.items()},
        name=name,
        data=ScoredSet("dlc_bench", "test", file_sha256(questions), str(questions.resolve())),
        job_dir=judged.resolve().parent / "evaluations" / name,
        tags={"judged": str(judged.resolve()), "answers": score.answers, "no_choice": len(score.no_choice)},
        started=started,
    )
    # What was computed is printed, whatever the disk of the journal says.
    attempt(judged, log)
