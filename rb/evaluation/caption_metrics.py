"""Scores captions on plain dicts by the metrics of rb/core/metrics.py; METEOR and SPICE, which are Java programs, are run from here.

Used by ``rb.evaluation.scoring`` (files) and ``rb metrics doctor``. What cannot run here is None and named in ``skipped``, with the remedy.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider

from rb.core.metrics import METRICS, check_metrics, cider_remark
from rb.evaluation.java import HOW_TO_GET_JAVA, Java, JavaMissingError, JavaToolError, find_java
from rb.evaluation.meteor import Meteor
from rb.evaluation.simple_cider import simple_tokenise
from rb.evaluation.spice import MAX_WORDS, SpiceRow, cut_for_spice, spice_scores
from rb.evaluation.spice_jars import SpiceMissingError, spice_jars
from rb.evaluation.tokenise import ptb_tokenise

LOG = logging.getLogger(__name__)

MAX_COPIED = 5  # references tried for the attainable scores; each costs as much as one CIDEr of the set

Tokenised = dict[str, list[str]]  # id -> tokenised texts, as pycocoevalcap's scorers take them


@dataclass(frozen=True)
class CaptionScores:
    """What scoring one set of captions gave.

    Attributes:
        scores: every name of ``METRICS`` with its value for the whole set, None where it was skipped.
        per_example: id to its value of each metric that has one per example (None where skipped). Their mean is the corpus value; CIDEr's
            depends on the set.
        spice_details: id to precision, recall and f per category of tuples; empty where SPICE was skipped.
        spice_cut: how many texts SPICE read only the first words of: ``words`` (the limit), ``predictions``, ``references``; empty where it was
            skipped.
        attainable: CIDEr and BLEU-4 that a perfect captioner reaches on this set (see ``attainable_scores``).
        skipped: metric to reason and remedy, one line each.
        tokeniser: ``ptb``, or ``simple`` without Java; scores of the two are not comparable.
        versions: of what computed the scores.
    """

    scores: dict[str, float | None]
    per_example: dict[str, dict[str, float | None]]
    spice_details: dict[str, SpiceRow]
    spice_cut: dict[str, int]
    attainable: dict[str, float]
    skipped: dict[str, str]
    tokeniser: str
    versions: dict[str, str] = field(default_factory=dict)


def score_captions(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    use_java: bool = True,
    spice_cache: Path | None = None,
    metrics: Collection[str] = METRICS,
    meteor: Meteor | None = None,
) -> CaptionScores:
    """Scores one prediction per id against that id's references. Texts are raw; they are tokenised here, in the order of the ids.

    Args:
        predictions: id to caption; an empty caption is allowed and scores nothing.
        references: id to its reference captions, at least one; the same ids.
        use_java: without it METEOR and SPICE are skipped and the ``simple`` tokeniser serves the rest.
        spice_cache: folder in which SPICE keeps parsed captions.
        metrics: which of ``METRICS`` are wanted; METEOR and SPICE cost seconds to minutes.
        meteor: a METEOR process to share between sets; by default one is started for this one.

    Raises:
        ValueError: no captions, ids that are not the same in both, an id without references, an unknown metric.
    """
    _check(predictions, references, metrics)
    ids = sorted(predictions)  # the order changes the last bit of a mean
    skipped: dict[str, str] = {}
    java = _java(use_java, metrics, skipped)
    versions = {"pycocoevalcap": importlib.metadata.version("pycocoevalcap"), "java": java.version if java else "none"}
    given, wanted, tokeniser = _tokenised(ids, predictions, references, java, skipped)

    scores: dict[str, float | None] = dict.fromkeys(METRICS)
    each: dict[str, Sequence[float | None]] = {m.name: [None] * len(ids) for m in METRICS.values() if m.per_example}
    for metric in METRICS.values():
        if metric.score is not None and (metric.name in metrics or metric.per_example):
            scores[metric.name], values = metric.score(wanted, given)
            if metric.per_example:
                assert values is not None, f"{metric.name} gives no value per example"
                each[metric.name] = values

    texts, sets = [given[i][0] for i in ids], [wanted[i] for i in ids]
    if java and "METEOR" in metrics and "METEOR" not in skipped:
        try:
            with nullcontext(meteor) if meteor else Meteor() as scorer:
                scores["METEOR"] = scorer.scores(texts, sets, java)[0]
        except JavaToolError as error:
            skipped["METEOR"] = str(error)
    details: list[SpiceRow] = []
    spice_cut: dict[str, int] = {}
    if java and "SPICE" in metrics and "SPICE" not in skipped:
        try:
            jars = spice_jars()
            short, cut = cut_for_spice(texts)
            short_sets, cut_sets = zip(*map(cut_for_spice, sets), strict=True)
            scores["SPICE"], details = spice_scores(short, short_sets, java, jars, spice_cache)
            spice_cut = {"words": MAX_WORDS, "predictions": cut, "references": sum(cut_sets)}
            each["SPICE"] = [row["All"]["f"] for row in details]
            versions["corenlp"] = ", ".join(jar.name for jar in jars)
        except (SpiceMissingError, JavaToolError) as error:
            skipped["SPICE"] = str(error)

    return CaptionScores(
        scores={name: scores[name] if name in metrics else None for name in METRICS},
        per_example={i: {name: values[k] for name, values in each.items()} for k, i in enumerate(ids)},
        spice_details=dict(zip(ids, details, strict=False)),
        spice_cut=spice_cut,
        attainable=attainable_scores(wanted),
        skipped={name: skipped[name] for name in METRICS if name in skipped},
        tokeniser=tokeniser,
        versions=versions,
    )


def attainable_scores(references: Tokenised) -> dict[str, float]:
    """CIDEr and BLEU-4 of a captioner that returns for each id the one of its references (of the first 5) that scores highest.

    Short captions cannot reach the metrics' nominal maxima: one of three words has no 4-grams, so it gets at most 7.5 of CIDEr's 10 and
    nothing of BLEU-4; and no caption equals all of several different references.
    """
    ids = sorted(references)
    best: dict[str, tuple[float, str]] = {}
    for k in range(min(MAX_COPIED, max(len(texts) for texts in references.values()))):
        copied = {i: [references[i][min(k, len(references[i]) - 1)]] for i in ids}
        _, each = Cider().compute_score({i: references[i] for i in ids}, copied)
        for i, value in zip(ids, each, strict=True):
            if i not in best or value > best[i][0]:
                best[i] = (float(value), copied[i][0])
    bleu, _ = Bleu(4).compute_score({i: references[i] for i in ids}, {i: [best[i][1]] for i in ids}, verbose=0)
    return {"CIDEr": sum(value for value, _ in best.values()) / len(ids), "BLEU-4": float(bleu[3])}


def remark_on(references: Sequence[Sequence[str]]) -> str | None:
    """`rb.core.metrics.cider_remark` of a set that is not scored here: the references of each example, as written."""
    return cider_remark(attainable_scores({str(i): simple_tokenise(texts) for i, texts in enumerate(references)}))


def _check(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]], metrics: Collection[str]) -> None:
    check_metrics(metrics)
    if not predictions:
        raise ValueError("no captions to score: there is not one prediction")
    for text, surplus in (
        ("has references but no prediction", set(references) - set(predictions)),
        ("has a prediction but no references", set(predictions) - set(references)),
        ("has an empty list of references", {i for i in references if not references[i]}),
    ):
        if surplus:
            raise ValueError(f"id {min(surplus)!r} {text} ({len(surplus)} of {len(predictions)}); every id needs both")


def _java_metrics() -> list[str]:
    return [metric.name for metric in METRICS.values() if metric.score is None]


def _java(use_java: bool, metrics: Collection[str], skipped: dict[str, str]) -> Java | None:
    """The Java to use; without one, the metrics that need it are marked as skipped."""
    try:
        if use_java:
            return find_java()
        reason = "switched off with --no-java"
    except JavaMissingError as error:
        reason = str(error)
    skipped.update({name: reason for name in _java_metrics() if name in metrics})
    return None


def _tokenised(
    ids: Sequence[str],
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    java: Java | None,
    skipped: dict[str, str],
) -> tuple[Tokenised, Tokenised, str]:
    """Tokenised predictions and references by id, and the name of the tokeniser; a Java that fails here is not asked again."""
    texts = [predictions[i] for i in ids] + [text for i in ids for text in references[i]]
    lines, tokeniser = None, "ptb"
    if java is not None:
        try:
            lines = ptb_tokenise(texts, java)
        except JavaToolError as error:
            LOG.warning("%s; the simple tokeniser serves instead, without METEOR and SPICE. %s", error, HOW_TO_GET_JAVA)
            skipped.update(dict.fromkeys(_java_metrics(), str(error)))
    if lines is None:
        lines, tokeniser = simple_tokenise(texts), "simple"
    given = {i: [line] for i, line in zip(ids, lines, strict=False)}
    rest = iter(lines[len(ids) :])
    return given, {i: [next(rest) for _ in references[i]] for i in ids}, tokeniser
