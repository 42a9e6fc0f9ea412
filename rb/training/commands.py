"""``rb import-released``: a released RegionBLIP checkpoint as a run folder. Training itself is started by ``rb/train.py``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rb.core.exit_codes import FINISHED
from rb.core.output import say


def add_import(parser: argparse.ArgumentParser) -> None:
    """``rb import-released``."""
    parser.add_argument("file", type=Path, help="regionblip_opt-2.7b.pth or a sibling")
    parser.add_argument(
        "--run", type=Path, required=True, metavar="FILE", dest="run_file", help="launch/runs/released_opt_2.7b.yaml"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN_DIR", help="the run folder to make")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="key=value", dest="overrides", help="e.g. model.foundation.blip2=FOLDER"
    )
    parser.set_defaults(run=run_import)


def run_import(args: argparse.Namespace) -> int:
    """Make the run folder; print what became of every key."""
    from rb.core.run_paths import open_foundation
    from rb.training.import_released import import_run

    say("\n".join(import_run(args.file, open_foundation(args.run_file, args.overrides), args.out)))
    return FINISHED
