"""``rb ablate``: train, predict and score the variants of a plan. The work is done by ``rb/ablate/job.py``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rb.core.output import add_json


def add_ablate(parser: argparse.ArgumentParser) -> None:
    """``rb ablate``."""
    parser.add_argument("--plan", type=Path, required=True, help="YAML file, or a plan's name from rb runs list")
    parser.add_argument(
        "--out", type=Path, required=True, help="output folder (runs, logs, table); a partly finished one is continued"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run only these variants (and the first)")
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds to use instead of the plan's")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side (1)")
    parser.add_argument("--ranks", type=int, default=1, help="ranks of one training (1)")
    add_json(parser)
    parser.set_defaults(run=run_ablate)


def run_ablate(args: argparse.Namespace) -> int:
    """Exit codes: 0 all there, 1 a run failed (the others were made), 75 asked to stop."""
    from rb.ablate.job import run_ablate as work

    return work(args)
