"""``rb judge``: a judge's answers about captions of DLC-Bench, from any OpenAI-compatible endpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from rb.core.exit_codes import FINISHED
from rb.core.files import check_writable, write_json
from rb.core.output import add_json, note, say, say_json

_SHOWN = 5


def add_judge(parser: argparse.ArgumentParser) -> None:
    """``rb judge``."""
    parser.description = (
        "Ask a language model about captions of DLC-Bench, and write its answers in the published form, which "
        "rb score --task dlc scores. Killed, it goes on with the same command. The endpoint's token is read from RB_CHAT_TOKEN."
    )
    parser.add_argument("captions", type=Path, help="{mask id: text} as DAM writes it, or predictions.jsonl")
    parser.add_argument("--questions", type=Path, required=True, metavar="FILE", help="the benchmark's qa.json")
    parser.add_argument(
        "--class-names", type=Path, required=True, metavar="FILE", help="the benchmark's class_names.json"
    )
    parser.add_argument("--url", required=True, help="the endpoint, up to and with /v1")
    parser.add_argument("--model", required=True, help="the judge's name there; published figures: llama3.1-8b")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the judge's answers (JSON)")
    parser.add_argument(
        "--answers", type=Path, metavar="DIR", help="where answers are kept (OUT without suffix, .answers)"
    )
    parser.add_argument("--parallel", type=int, default=8, metavar="N", help="questions under way at once (8)")
    parser.add_argument("--limit-s", type=float, default=120.0, metavar="S", help="longest wait for an answer (120)")
    add_json(parser)
    parser.set_defaults(run=run_judge)


def run_judge(args: argparse.Namespace) -> int:
    """Ask what was not asked before; print the score and what could not be read."""
    from rb.core.chat_endpoint import ChatEndpoint
    from rb.evaluation.dlc import score_dlc
    from rb.evaluation.dlc_judge import judge, read_benchmark, read_captions

    if args.parallel < 1:
        raise ValueError(f"--parallel {args.parallel}: must be at least 1")
    questions, names = read_benchmark(args.questions, args.class_names)
    captions = read_captions(args.captions, list(questions))
    check_writable(args.out)
    kept = args.answers or args.out.with_suffix(".answers")
    endpoint = ChatEndpoint(args.url, args.model, kept, limit_s=args.limit_s)
    judged, unread = judge(captions, questions, names, endpoint, args.parallel)
    write_json(args.out, judged)
    score = score_dlc(judged, questions, str(args.out))
    if args.json:
        figures = {"positives": score.positives, "negatives": score.negatives, "mean": score.mean}
        say_json({**figures, "answers": score.answers, "unread": unread, "judged": str(args.out.resolve())})
    else:
        say(
            f"DLC-Bench, judged by {args.model}: positives {score.positives:.3f}, negatives {score.negatives:.3f}, "
            f"mean {score.mean:.3f} ({len(judged):,} objects, {score.answers:,} answers)"
        )
    if unread:
        shown = "; ".join(unread[:_SHOWN])
        note(f"note: from {len(unread):,} answers no choice could be read; they earn 0: {shown}")
    return FINISHED
