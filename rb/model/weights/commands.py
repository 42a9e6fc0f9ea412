"""``rb weights check`` (a run's weights load; what trains), ``convert`` (a LAVIS set, once), ``assemble`` (another LLM in OPT's place)."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from rb.core.exit_codes import FINISHED
from rb.core.output import add_json, say, say_json


def add_check(parser: argparse.ArgumentParser) -> None:
    """``rb weights check``."""
    parser.description = "Account for every weight of a run's model, from file headers; no training."
    parser.add_argument("--run", type=Path, required=True, metavar="FILE", help="run file (YAML)", dest="run_file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. model.text_branch=hub-itm")
    add_json(parser)
    parser.set_defaults(run=run_check)


def run_check(args: argparse.Namespace) -> int:
    """Print where every weight comes from and what trains."""
    from rb.core.run_paths import open_foundation
    from rb.model.weights.check import check_run

    report = check_run(open_foundation(args.run_file, args.overrides))
    if args.json:
        say_json(asdict(report))
    else:
        say("\n".join(report.lines()))
    return FINISHED


def add_convert(parser: argparse.ArgumentParser) -> None:
    """``rb weights convert``."""
    parser.description = "Write a LAVIS .pth set as a Hugging Face BLIP-2 folder."
    parser.add_argument("--stage2", type=Path, required=True, help="blip2_pretrained_opt2.7b.pth or a sibling")
    parser.add_argument("--vit", type=Path, help="eva_vit_g.pth, unless the stage-2 file holds a ViT")
    parser.add_argument(
        "--llm", type=Path, required=True, help="folder of the LLM: facebook/opt-2.7b, google/flan-t5-xl, ..."
    )
    parser.add_argument("--config", type=Path, help="a BLIP-2 config.json, if the sizes are not the public ones")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.set_defaults(run=run_convert)


def run_convert(args: argparse.Namespace) -> int:
    """Write the folder."""
    from rb.model.weights.convert import convert

    say("\n".join(convert(args.stage2, args.vit, args.llm, args.out, args.config)))
    return FINISHED


def add_assemble(parser: argparse.ArgumentParser) -> None:
    """``rb weights assemble``."""
    parser.description = (
        "Put any causal LM in OPT's place: BLIP-2's ViT and Q-Former, the LLM, a new language projection."
    )
    parser.add_argument("--vit", type=Path, required=True, help="BLIP-2 folder whose vision encoder is taken")
    parser.add_argument(
        "--qformer", type=Path, required=True, help="BLIP-2 folder whose Q-Former is taken; mostly the same"
    )
    parser.add_argument(
        "--llm", type=Path, required=True, help="folder of a causal LM with its tokenizer, or a .gguf file"
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write, e.g. foundation/blip2-smollm2")
    parser.add_argument("--seed", type=int, default=0, help="of the language projection's draw (0)")
    parser.set_defaults(run=run_assemble)


def run_assemble(args: argparse.Namespace) -> int:
    """Write the folder."""
    from rb.model.weights.assemble import assemble

    say("\n".join(assemble(args.vit, args.qformer, args.llm, args.out, args.seed)))
    return FINISHED
