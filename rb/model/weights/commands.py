"""``rb weights check --run FILE``: would this run's model load, and what of it trains. ``rb weights convert``: a LAVIS set, once."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """``rb weights check`` and ``rb weights convert``."""
    weights = commands.add_parser("weights", help="checkpoints: check and convert").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    check = weights.add_parser(
        "check", help="account for every weight of a run's model, from file headers; no training"
    )
    check.add_argument("--run", type=Path, required=True, metavar="FILE", help="run file (YAML)", dest="run_file")
    check.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. model.text_branch=hub-itm")
    check.set_defaults(run=_check)
    made = weights.add_parser("convert", help="write a LAVIS .pth set as a Hugging Face BLIP-2 folder")
    made.add_argument("--stage2", type=Path, required=True, help="blip2_pretrained_opt2.7b.pth or a sibling")
    made.add_argument("--vit", type=Path, help="eva_vit_g.pth, unless the stage-2 file holds a ViT")
    made.add_argument(
        "--llm", type=Path, required=True, help="folder of the LLM: facebook/opt-2.7b, google/flan-t5-xl, ..."
    )
    made.add_argument("--config", type=Path, help="a BLIP-2 config.json, where the sizes are not the public ones")
    made.add_argument("--out", type=Path, required=True, help="the folder to write")
    made.set_defaults(run=_convert)


def _check(args: argparse.Namespace) -> int:
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # peft uses its old names
    from rb.core.run_paths import open_foundation
    from rb.model.weights.check import check_run

    _say(check_run(open_foundation(args.run_file, args.overrides)))
    return 0


def _convert(args: argparse.Namespace) -> int:
    from rb.model.weights.convert import convert

    _say(convert(args.stage2, args.vit, args.llm, args.out, args.config))
    return 0


def _say(lines: list[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
