"""``rb import-released``: a released RegionBLIP checkpoint as a run folder; ``rb extend``: a longer run. Training is started by ``rb/train.py``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rb.core.exit_codes import FINISHED
from rb.core.optim_config import KEEP, RATES, RESTART, STRETCH
from rb.core.output import say
from rb.core.run_layout import RUN_CONFIG


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


def add_extend(parser: argparse.ArgumentParser) -> None:
    """``rb extend``."""
    parser.description = "Make a run longer; rb train --resume RUN_DIR then goes on with its parameters and moments."
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the run folder; its run ended or was stopped")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--epochs", type=int, metavar="N", help="length of the run in epochs, from its first one")
    length.add_argument("--steps", type=int, metavar="N", help="length of the run in steps, from its first one")
    parser.add_argument(
        "--rate",
        required=True,
        choices=RATES,
        help=f"{KEEP}: as before, then optim.min_lr after the old end; {STRETCH}: from now on the cosine ends at the new end; "
        f"{RESTART}: at the old end a new warm-up and cosine over the added steps",
    )
    parser.set_defaults(run=run_extend)


def run_extend(args: argparse.Namespace) -> int:
    """Change the run folder; say what the rate will be."""
    from rb.core.run_file import load_run
    from rb.training.extending import describe, extend

    for option, value in (("--epochs", args.epochs), ("--steps", args.steps)):
        if value is not None and value < 1:
            raise ValueError(f"{option} {value}: must be at least 1")
    extension = extend(args.run_dir, args.rate, args.steps, args.epochs)
    say(describe(args.run_dir, extension, load_run(args.run_dir / RUN_CONFIG)))
    return FINISHED
