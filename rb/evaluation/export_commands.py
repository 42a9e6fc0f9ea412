"""``rb export-predictions``: predictions as files that others' tools score."""

from __future__ import annotations

import argparse
from pathlib import Path

from rb.core.exit_codes import FINISHED
from rb.core.output import say


def add_export_predictions(parser: argparse.ArgumentParser) -> None:
    """``rb export-predictions``."""
    parser.description = "Write a predictions file in the form of another tool (docs/evaluation.md)."
    parser.add_argument("predictions", type=Path, help="a file that rb predict wrote")
    parser.add_argument("--as", dest="form", required=True, choices=("lmms-eval", "vlmevalkit", "coco", "dam"))
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write")
    parser.add_argument("--task", metavar="NAME", help="lmms-eval: its task, such as refcoco_bbox_val")
    parser.add_argument("--doc-ids", type=Path, metavar="FILE", help="lmms-eval: {id of a prediction: doc_id}")
    parser.set_defaults(run=run_export_predictions)


def run_export_predictions(args: argparse.Namespace) -> int:
    """Write the file; a line on what it holds."""
    from rb.data.predictions import read_predictions
    from rb.evaluation.others_files import write_others

    rows, _ = read_predictions(args.predictions)
    if not rows:
        raise ValueError(f"{args.predictions}: no predictions in it; predict again")
    say(write_others(rows, args.form, args.out, args.task, args.doc_ids))
    return FINISHED
