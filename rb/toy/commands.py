"""``rb toy raw``: the toy world as raw data sets. ``rb toy foundation``: its small models. ``rb toy demo``: the whole chain on them. ``rb toy tasks``: more of its scores."""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

from rb.core.exit_codes import FINISHED
from rb.core.output import add_json, say

SCALES = ("demo", "small")  # rows of rb/toy/raw/data_sets.py
LLMS = ("opt", "t5")


def add_raw(parser: argparse.ArgumentParser) -> None:
    """``rb toy raw``."""
    parser.description = "Write the toy world as raw COCO, RefCOCO, Objaverse and ScanRefer files."
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--seed", type=int, default=0, help="another world for each number (0)")
    parser.add_argument("--scale", choices=SCALES, default="demo", help="how much of it (demo)")
    parser.set_defaults(run=run_raw)


def run_raw(args: argparse.Namespace) -> int:
    """Write the raw files of all data sets."""
    from rb.toy.raw.data_sets import SCALES, write_raw

    started = time.monotonic()
    folders = write_raw(args.out, args.seed, SCALES[args.scale])
    for name, folder in folders.items():
        counts = ", ".join(f"{split} {count:,}" for split, count in SCALES[args.scale][name].items())
        say(f"{name}: {folder} ({counts}; about 1 % spoiled on top)")
    say(f"written in {time.monotonic() - started:.1f} s")
    return FINISHED


def add_foundation(parser: argparse.ArgumentParser) -> None:
    """``rb toy foundation``."""
    parser.description = (
        "Copy the toy foundation: miniatures of BLIP-2 (OPT and FlanT5), of the text branch and of Point-BERT, 7 MB. "
        "To try commands with; it knows only the toy world."
    )
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.set_defaults(run=run_foundation)


def run_foundation(args: argparse.Namespace) -> int:
    """Copy it, whole or not at all."""
    from rb.core.files import whole_folder
    from rb.core.install import PACKAGE

    if args.out.exists():
        raise ValueError(f"{args.out}: exists already; name another folder, or remove it")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    given = PACKAGE / "toy" / "foundation"
    with whole_folder(args.out) as folder:
        shutil.copytree(given, folder, dirs_exist_ok=True)
    say(f"{args.out}: {', '.join(sorted(path.name for path in given.iterdir() if path.is_dir()))}")
    return FINISHED


def add_demo(parser: argparse.ArgumentParser) -> None:
    """``rb toy demo``."""
    parser.description = "The whole chain on the toy world, 12 to 20 minutes on 2 cores."
    parser.add_argument("--llm", choices=LLMS, default="opt", help="LLM of the foundation (opt)")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for everything it makes (demo)")
    parser.add_argument("--steps", type=int, help="train only so many steps, for a quick look")
    parser.add_argument("--scale", choices=SCALES, default="demo", help="small: a few examples of each data set (demo)")
    parser.set_defaults(run=run_demo)


def run_demo(args: argparse.Namespace) -> int:
    """Everything into ``--out``, which must be new or an earlier demo. ``args.rb`` runs one command."""
    from rb.toy.demo import Demo

    return Demo(args.out, args.llm, args.steps, args.scale, args.rb).run_all()


def add_tasks(parser: argparse.ArgumentParser) -> None:
    """``rb toy tasks``."""
    parser.description = "Zero-shot classes, retrieval and answers of a trained toy model over scenes that no training has seen, beside chance."
    parser.add_argument("--checkpoint", type=Path, required=True, help="run folder of the demo, or a checkpoint in it")
    parser.add_argument("--foundation", type=Path, help="folder of the frozen weights, if it is not where the run says")
    parser.add_argument("--out", type=Path, required=True, help="folder for the sets and predictions")
    parser.add_argument("--scenes", type=int, default=500, help="scenes of a draw (500)")
    parser.add_argument("--seeds", type=int, default=3, help="draws of scenes (3)")
    add_json(parser)
    parser.set_defaults(run=run_tasks)


def run_tasks(args: argparse.Namespace) -> int:
    """Measure and print."""
    from rb.toy.tasks import run

    return run(args)
