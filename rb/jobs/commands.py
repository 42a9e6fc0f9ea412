"""``rb evaluate``: score the models of a plan in its tasks (``rb/jobs/job.py``). ``rb reproduce``: are they as expected (``rb/jobs/reproduce.py``)."""

from __future__ import annotations

import argparse
from pathlib import Path

from rb.core.output import add_json


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """``rb evaluate``."""
    parser.description = (
        "Predict and score every cell of a plan (a model with a task and a variant) that is not there yet, and write one table. "
        "A process that was killed goes on where it was."
    )
    parser.add_argument("--plan", type=Path, required=True, help="YAML file, or a plan's name from rb runs list")
    parser.add_argument(
        "--out", type=Path, help="output folder (predictions, scores, table); a partly finished one is continued"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="CELL", help="only these cells, by name or number")
    parser.add_argument("--list", action="store_true", help="print the cells with their numbers, and do nothing")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side, each with one model at a time (1)")
    parser.add_argument(
        "--watch",
        type=Path,
        metavar="RUN_DIR",
        help="score every checkpoint of this run as training goes on, until it ends",
    )
    parser.add_argument("--no-mlflow", action="store_true", help="do not log the scores")
    add_json(parser)
    parser.set_defaults(run=run_evaluate)


def run_evaluate(args: argparse.Namespace) -> int:
    """Exit codes: 0 every cell is scored, 1 some failed (the others are there), 75 asked to stop."""
    from rb.jobs.job import run_evaluate as work

    return work(args)


def add_reproduce(parser: argparse.ArgumentParser) -> None:
    """``rb reproduce``."""
    parser.description = (
        "Run a plan whose scores are known beforehand: each cell is PASS, FAIL or NOT RUN. Missing files are named."
    )
    parser.add_argument("name", help="table1, the paper's; or another plan, by its file or its name from rb runs list")
    parser.add_argument(
        "--rows", choices=("blip2", "released"), help="only models without training, or only released checkpoints"
    )
    parser.add_argument(
        "--limit", type=int, help="only the first so many examples of each set; tolerances grow by what that costs"
    )
    parser.add_argument("--out", type=Path, help="output folder (reproduced/NAME); a partly finished one is continued")
    add_json(parser)
    parser.set_defaults(run=run_reproduce)


def run_reproduce(args: argparse.Namespace) -> int:
    """Exit codes: 0 every cell passes, 1 not."""
    from rb.jobs.reproduce import run_reproduce as work

    return work(args)
