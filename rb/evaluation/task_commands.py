"""``rb score --task``: scores that are not those of captions, of files that others may have written."""

from __future__ import annotations

import argparse

from rb.core.exit_codes import FINISHED
from rb.core.files import write_json
from rb.core.output import aligned, note, say, say_json

# Task -> the options that name its files.
TASKS = {"vqa": ("results", "annotations"), "dlc": ("judged", "questions")}
_SHOWN = 5  # answers without a choice that are named


def run_task(args: argparse.Namespace) -> int:
    """Score one task's files; print, and with ``--out`` write, what was found."""
    needed = TASKS[args.task]
    if args.predictions or args.coco_results or any(getattr(args, name) is None for name in needed):
        options = " and ".join(f"--{name} FILE" for name in needed)
        raise ValueError(f"--task {args.task} reads its own files; give {options}, and no other file")
    for name in needed:
        if not getattr(args, name).exists():
            raise ValueError(f"--{name} {getattr(args, name)}: no such file")
    found = {"task": args.task, **(_vqa(args) if args.task == "vqa" else _dlc(args))}
    if args.out:
        write_json(args.out, found)
    if args.json:
        say_json(found)
    return FINISHED


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
    from rb.evaluation.dlc import score_dlc_files

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
    return {
        "positives": score.positives,
        "negatives": score.negatives,
        "mean": score.mean,
        "answers": score.answers,
        "no_choice": score.no_choice,
        "objects": score.objects,
    }
