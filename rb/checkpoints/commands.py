"""``rb checkpoints RUN_DIR``: which checkpoints a run has, which one is the latest and the best, and whether each is whole."""

from __future__ import annotations

import argparse
from pathlib import Path

from rb.core.exit_codes import FAILED, FINISHED
from rb.core.output import add_json, aligned, say, say_json


def add_checkpoints(parser: argparse.ArgumentParser) -> None:
    """``rb checkpoints``."""
    parser.description = "List a run's checkpoints and read every byte of them. Exit codes: 0 the latest one is whole; 1 it is not, or there is none."
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the run's folder; a training may be in it")
    add_json(parser)
    parser.set_defaults(run=run_checkpoints)


def run_checkpoints(args: argparse.Namespace) -> int:
    """Print the list; FAILED if `latest` names no whole one."""
    from dataclasses import asdict

    from rb.checkpoints.listing import list_checkpoints

    found = list_checkpoints(args.run_dir)
    if args.json:
        say_json({"run": str(args.run_dir), "good": found.good} | asdict(found))
        return FINISHED if found.good else FAILED
    lines = []
    if found.rows:
        rows = [
            (
                *(row.name, (row.saved or "")[:19].replace("T", " "), f"{row.bytes / 1e6:,.1f} MB"),
                ", ".join([row.fault or "whole", *(["latest"] if row.latest else []), *(["best"] if row.best else [])]),
            )
            for row in found.rows
        ]
        widths = aligned([row[:3] for row in rows], 2)
        lines += [f"{line}  {row[3]}" for line, row in zip(widths, rows, strict=True)]
    else:
        lines.append(f"{args.run_dir}: no checkpoint")
    lines += found.faults
    if found.left_overs:
        lines.append(
            f"{len(found.left_overs)} unfinished: of a training that saves just now, or of one that was killed"
        )
    say("\n".join(lines))
    return FINISHED if found.good else FAILED
