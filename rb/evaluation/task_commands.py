"""``rb score --task``: scores that are not those of captions, of files that others may have written or of rows of ``rb predict``."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from rb.core.exit_codes import FINISHED
from rb.core.files import write_json
from rb.core.output import aligned, note, say, say_json

# Task -> the options that name its files; none: it scores a file of rb predict.
TASKS: dict[str, tuple[str, ...]] = {
    "vqa": ("results", "annotations"),
    "dlc": ("judged", "questions"),
    "category": (),
    "phrase": (),
    "scan2cap": (),
    "zeroshot": (),
    "retrieval": (),
}
_SHOWN = 5  # answers without a choice that are named


def add_task_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``rb score`` that belong to a task."""
    parser.add_argument("--task", choices=TASKS, help="what else is scored (docs/evaluation.md)")
    options = parser.add_argument_group("options of tasks")
    file: dict[str, Any] = {"type": Path, "metavar": "FILE"}
    options.add_argument("--results", **file, help="vqa: [{question_id, answer}]; --annotations are VQAv2's")
    options.add_argument("--judged", **file, help="dlc: the judge's answers, as published or by rb judge")
    options.add_argument("--questions", **file, help="dlc: the benchmark's qa.json")
    options.add_argument(
        "--per", choices=("region", "sentence"), default="region", help="phrase: what one entry is (region)"
    )
    options.add_argument("--given", **file, help="scan2cap: predictions of all described objects in their own boxes")
    options.add_argument("--proposals", **file, help="scan2cap: a detector's boxes, {scene: [{box, caption}]}")
    options.add_argument(
        "--box-form", choices=("minmax", "centre_size"), default="minmax", help="scan2cap: of six numbers (minmax)"
    )
    options.add_argument(
        "--match", choices=("one_to_one", "nearest"), default="one_to_one", help="scan2cap: of proposals (one_to_one)"
    )
    options.add_argument(
        "--tokens", choices=("in", "out"), default="in", help="scan2cap: start and end tokens around every text (in)"
    )


def run_task(args: argparse.Namespace) -> int:
    """Score one task's files; print, and with ``--out`` write, what was found."""
    needed = TASKS[args.task]
    if needed and (args.predictions or args.coco_results or any(getattr(args, name) is None for name in needed)):
        options = " and ".join(f"--{name} FILE" for name in needed)
        raise ValueError(f"--task {args.task} reads its own files; give {options}, and no other file")
    for name in (*needed, *(name for name in ("given", "proposals") if getattr(args, name) is not None)):
        if not getattr(args, name).exists():
            raise ValueError(f"--{name} {getattr(args, name)}: no such file")
    found = {"task": args.task, **_FOUND.get(args.task, _of_rows)(args)}
    if args.out:
        write_json(args.out, found)
    if args.json:
        say_json(found)
    return FINISHED


def _of_rows(args: argparse.Namespace) -> dict[str, Any]:
    from rb.evaluation.row_tasks import run_row_task

    return run_row_task(args)


def _vqa(args: argparse.Namespace) -> dict[str, object]:
    from rb.evaluation.vqa_results import score_vqa_files

    found = score_vqa_files(args.results, args.annotations)
    if not args.json:
        kinds = list(found["accuracy"]["official"])
        rows = [
            (f"VQA accuracy ({m})", *(f"{by_kind[k]:.2f}" for k in kinds)) for m, by_kind in found["accuracy"].items()
        ]
        say(f"{found['questions']:,} questions; three public normalisations, percent")
        for line in aligned([("", *kinds), *rows], 1):
            say(line)
    return found


def _dlc(args: argparse.Namespace) -> dict[str, object]:
    from rb.evaluation.dlc import log_dlc, score_dlc_files

    started = time.time()
    score = score_dlc_files(args.judged, args.questions)
    if not args.json:
        objects = set().union(*score.objects.values())
        say(
            f"DLC-Bench: positives {score.positives:.3f}, negatives {score.negatives:.3f}, mean {score.mean:.3f} "
            f"({len(objects):,} objects, {score.answers:,} answers)"
        )
    if score.no_choice:
        named = ", ".join(score.no_choice[:_SHOWN])
        note(f"note: in {len(score.no_choice):,} answers the judge picked no choice, which earns 0: {named}")
    if not args.no_mlflow:
        log_dlc(score, args.judged, args.questions, started)
    return {
        "positives": score.positives,
        "negatives": score.negatives,
        "mean": score.mean,
        "answers": score.answers,
        "no_choice": score.no_choice,
        "objects": score.objects,
    }


_FOUND = {"vqa": _vqa, "dlc": _dlc}
