"""DLC-Bench's score from answers that a judge gave: no judge and no model is called here. For ``rb score --task dlc`` (not wired yet).

Protocol (NVlabs/describe-anything): each answer earns the points of the choice that the judge picked; an object that the judge did not
recognise earns at most 0 an answer; an object's score is the mean of its answers, positives and negatives apart; then the mean over
objects, and the mean of the two. Objects without negatives count among positives only. No choice picked counts 0 and is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SUMMARIES = (
    "avg",
    "avg_pos",
    "avg_neg",
)  # a published file's own means, beside its objects; ``avg`` is not the published mean
KINDS = ("positive", "negative")


@dataclass(frozen=True)
class DlcScore:
    """Scores in [-1, 1]; ``objects``: per kind, object id to its score; ``no_choice``: answers in which no choice was picked."""

    positives: float
    negatives: float
    no_choice: list[str] = field(default_factory=list)
    objects: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """The published mean: of positives and negatives."""
        return (self.positives + self.negatives) / 2


def score_dlc(
    judged: Mapping[str, Any], questions: Mapping[str, Sequence[Mapping[str, Any]]], where: str = "judged"
) -> DlcScore:
    """Scores of ``judged`` (a published ``*_eval.json``) by the points in ``questions`` (``qa.json``).

    Raises ValueError if the objects or the questions of an object differ between the two.
    """
    ids = [name for name in judged if name not in SUMMARIES]
    for name in [*(i for i in questions if i not in judged), *(i for i in ids if i not in questions)]:
        lacking = "the judged answers" if name in questions else "the questions"
        raise ValueError(f"{where}: object {name} is missing in {lacking}; give both files of one benchmark")
    scores: dict[str, dict[str, float]] = {kind: {} for kind in KINDS}
    no_choice: list[str] = []
    for name in ids:
        recognised = judged[name].get("recognition_result")
        if not isinstance(recognised, bool):
            raise ValueError(f"{where}: object {name}: recognition_result is {recognised!r}; it must be true or false")
        for kind in KINDS:
            asked = [q for q in questions[name] if q["type"] == kind]
            answers = judged[name].get(f"details_{kind}s") or []
            if len(answers) != len(asked):
                raise ValueError(
                    f"{where}: object {name}: {len(answers)} {kind} answers to {len(asked)} questions; judge it again"
                )
            points = []
            for n, (answer, question) in enumerate(zip(answers, asked, strict=True)):
                at = f"{name} {kind} {n}"
                earned = _points(answer, question, f"{where}: {at}")
                if earned is None:
                    no_choice.append(at)
                    earned = 0.0
                points.append(earned if recognised else min(earned, 0.0))
            if points:
                scores[kind][name] = sum(points) / len(points)
    for kind in KINDS:
        if not scores[kind]:
            raise ValueError(f"{where}: no {kind} answers at all; give the whole benchmark")
    positives, negatives = (sum(scores[kind].values()) / len(scores[kind]) for kind in KINDS)
    return DlcScore(positives, negatives, no_choice, scores)


def _points(answer: Mapping[str, Any], question: Mapping[str, Any], where: str) -> float | None:
    """Points of the picked choice, None where none was picked (null or -1)."""
    if answer.get("question") != question["question"] or answer.get("choices") != question["choices"]:
        raise ValueError(f"{where}: another question than the questions file has; give both files of one benchmark")
    picked = answer.get("pred_index")
    if picked is None or picked == -1:
        return None
    if not isinstance(picked, int) or isinstance(picked, bool) or not 0 <= picked < len(question["choices"]):
        raise ValueError(
            f"{where}: pred_index {picked!r} is none of {len(question['choices'])} choices; judge it again"
        )
    return float(question["choices"][picked][1])
