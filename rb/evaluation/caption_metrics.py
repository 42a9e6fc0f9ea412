"""Scores captions on plain dicts by the metrics of rb/core/metrics.py; METEOR and SPICE, which are Java programs, are run from here.

Any number of sets takes one process of each Java program: the tokeniser, then METEOR, then SPICE, one after the other.

Used by ``rb.evaluation.scoring`` (files) and ``rb metrics doctor``. What cannot run here is None and named in ``skipped``, with the remedy.
"""

from __future__ import annotations

import importlib.metadata
import logging
import resource
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider

from rb.core.metrics import METRICS, check_metrics, cider_remark
from rb.evaluation.java import HOW_TO_GET_JAVA, Java, JavaMissingError, JavaToolError, find_java
from rb.evaluation.meteor import Meteor
from rb.evaluation.simple_cider import simple_tokenise
from rb.evaluation.spice import MAX_WORDS, cut_for_spice, spice_scores
from rb.evaluation.spice_jars import SpiceMissingError, spice_jars
from rb.evaluation.spice_process import SpiceRow
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
        attainable: CIDEr and BLEU-4 that a perfect captioner reaches on this set (see ``attainable_scores``), if that was wanted. Else only a
            CIDEr of 0, where nothing more is possible, which is known at no cost.
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


@dataclass(frozen=True)
class CaptionSet:
    """What is scored together: id to caption, and the same ids to their reference captions, at least one each. Texts are raw.

    An empty caption is allowed and scores nothing.
    """

    predictions: Mapping[str, str]
    references: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class _Tokenised:
    """One set with tokenised texts, in the order of its ids."""

    ids: list[str]
    given: Tokenised
    wanted: Tokenised

    @property
    def texts(self) -> list[str]:
        return [self.given[i][0] for i in self.ids]

    @property
    def references(self) -> list[list[str]]:
        return [self.wanted[i] for i in self.ids]


def score_captions(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    use_java: bool = True,
    spice_cache: Path | None = None,
    metrics: Collection[str] = METRICS,
    meteor: Meteor | None = None,
    attainable: bool = False,
) -> CaptionScores:
    """``score_sets`` of one set."""
    one = CaptionSet(predictions, references)
    return score_sets([one], use_java, spice_cache, metrics, meteor, attainable)[0]


def score_sets(
    sets: Sequence[CaptionSet],
    use_java: bool = True,
    spice_cache: Path | None = None,
    metrics: Collection[str] = METRICS,
    meteor: Meteor | None = None,
    attainable: bool = False,
    cpu_s: dict[str, float] | None = None,
) -> list[CaptionScores]:
    """Scores each set for itself, with one process of each Java program for all. Texts are tokenised here, in the order of the ids.

    Args:
        sets: any number of them.
        use_java: without it METEOR and SPICE are skipped and the ``simple`` tokeniser serves the rest.
        spice_cache: folder in which SPICE keeps parsed captions.
        metrics: which of ``METRICS`` are wanted; METEOR and SPICE cost seconds to minutes.
        meteor: a METEOR process to share between calls; by default one is started here, and gone before SPICE starts.
        attainable: also what a perfect captioner would score; it costs as much as up to 5 times CIDEr.
        cpu_s: gets the CPU seconds of each metric, of ``tokeniser`` and ``attainable``, ended Java processes included.

    Raises:
        ValueError: no captions, ids that are not the same in both, an id without references, an unknown metric.
    """
    cpu_s = {} if cpu_s is None else cpu_s
    for given in sets:
        _check(given.predictions, given.references, metrics)
    skipped: dict[str, str] = {}
    java = _java(use_java, metrics, skipped)
    versions = {"pycocoevalcap": importlib.metadata.version("pycocoevalcap"), "java": java.version if java else "none"}
    with _counted(cpu_s, "tokeniser"):
        texts, tokeniser = _tokenised(sets, java, skipped)

    scores: list[dict[str, float | None]] = [dict.fromkeys(METRICS) for _ in texts]
    each: list[dict[str, Sequence[float | None]]] = [
        {m.name: [None] * len(one.ids) for m in METRICS.values() if m.per_example} for one in texts
    ]
    if java and "METEOR" in metrics and "METEOR" not in skipped:
        with _counted(cpu_s, "METEOR"):
            try:
                with nullcontext(meteor) if meteor else Meteor() as scorer:
                    found = [scorer.scores(one.texts, one.references, java)[0] for one in texts]
                for entry, value in zip(scores, found, strict=True):
                    entry["METEOR"] = value
            except JavaToolError as error:
                skipped["METEOR"] = str(error)
    details: list[list[SpiceRow]] = [[] for _ in texts]
    cut: list[dict[str, int]] = [{} for _ in texts]
    if java and "SPICE" in metrics and "SPICE" not in skipped:
        with _counted(cpu_s, "SPICE"):
            try:
                jars = spice_jars()
                details, cut = _spice(texts, java, jars, spice_cache)
                for k, rows in enumerate(details):
                    each[k]["SPICE"] = [row["All"]["f"] for row in rows]
                    scores[k]["SPICE"] = sum(row["All"]["f"] or 0.0 for row in rows) / len(rows)
                versions["corenlp"] = ", ".join(jar.name for jar in jars)
            except (SpiceMissingError, JavaToolError) as error:
                skipped["SPICE"] = str(error)
    # After Java's: what CIDEr holds of 50,000 captions is not there beside a Java process.
    for metric in METRICS.values():
        if metric.score is None or not (metric.name in metrics or metric.per_example):
            continue
        with _counted(cpu_s, metric.name):
            for k, one in enumerate(texts):
                scores[k][metric.name], values = metric.score(one.wanted, one.given)
                if metric.per_example:
                    assert values is not None, f"{metric.name} gives no value per example"
                    each[k][metric.name] = values
    with _counted(cpu_s, "attainable"):
        best = [attainable_scores(one.wanted) if attainable else _known_attainable(one.wanted) for one in texts]

    return [
        CaptionScores(
            scores={name: scores[k][name] if name in metrics else None for name in METRICS},
            per_example={i: {name: values[j] for name, values in each[k].items()} for j, i in enumerate(one.ids)},
            spice_details=dict(zip(one.ids, details[k], strict=False)),
            spice_cut=cut[k],
            attainable=best[k],
            skipped={name: skipped[name] for name in METRICS if name in skipped},
            tokeniser=tokeniser,
            versions=dict(versions),
        )
        for k, one in enumerate(texts)
    ]


def _spice(
    texts: Sequence[_Tokenised], java: Java, jars: Sequence[Path], cache: Path | None
) -> tuple[list[list[SpiceRow]], list[dict[str, int]]]:
    """Of each set the rows of its captions and how many texts were cut; one process for all: a caption's row depends on no other caption."""
    captions: list[str] = []
    references: list[list[str]] = []
    cuts = []
    for one in texts:
        short, cut = cut_for_spice(one.texts)
        short_sets, cut_sets = zip(*map(cut_for_spice, one.references), strict=True)
        captions += short
        references += short_sets
        cuts.append({"words": MAX_WORDS, "predictions": cut, "references": sum(cut_sets)})
    rows = iter(spice_scores(captions, references, java, jars, cache)[1])
    return [[next(rows) for _ in one.ids] for one in texts], cuts


@contextmanager
def _counted(cpu_s: dict[str, float], name: str) -> Iterator[None]:
    """Adds the CPU seconds of the block to an entry."""
    before = cpu_seconds()
    try:
        yield
    finally:
        cpu_s[name] = cpu_s.get(name, 0.0) + cpu_seconds() - before


def cpu_seconds() -> float:
    """Of this process and its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


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
    return cider_remark(_known_attainable({str(i): simple_tokenise(texts) for i, texts in enumerate(references)}))


def _known_attainable(references: Tokenised) -> dict[str, float]:
    """CIDEr 0 where nothing more is possible: every sequence of 1 to 4 words stands in the references of all examples. Else nothing."""
    every = iter(references.values())
    first = _sequences(next(every))
    return {"CIDEr": 0.0} if all(_sequences(texts) == first for texts in every) else {}


def _sequences(texts: Sequence[str]) -> set[tuple[str, ...]]:
    lists = [text.split() for text in texts]
    return {tuple(words[i : i + n]) for words in lists for n in range(1, 5) for i in range(len(words) - n + 1)}


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


def _tokenised(sets: Sequence[CaptionSet], java: Java | None, skipped: dict[str, str]) -> tuple[list[_Tokenised], str]:
    """The sets tokenised, and the name of the tokeniser; a Java that fails here is not asked again."""
    orders = [sorted(one.predictions) for one in sets]  # the order changes the last bit of a mean
    texts: list[str] = []
    for one, ids in zip(sets, orders, strict=True):
        texts += [one.predictions[i] for i in ids]
        texts += [text for i in ids for text in one.references[i]]
    lines, tokeniser = None, "ptb"
    if java is not None:
        try:
            lines = ptb_tokenise(texts, java)
        except JavaToolError as error:
            LOG.warning("%s; the simple tokeniser serves instead, without METEOR and SPICE. %s", error, HOW_TO_GET_JAVA)
            skipped.update(dict.fromkeys(_java_metrics(), str(error)))
    if lines is None:
        lines, tokeniser = simple_tokenise(texts), "simple"
    rest = iter(lines)
    return [
        _Tokenised(
            ids,
            given={i: [next(rest)] for i in ids},
            wanted={i: [next(rest) for _ in one.references[i]] for i in ids},
        )
        for one, ids in zip(sets, orders, strict=True)
    ], tokeniser
