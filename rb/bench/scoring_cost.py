"""``rb bench score``: processor time of scoring N made-up captions, by metric, by the entry that ``rb score`` uses.

A call tokenises, and computes what every call does besides the metric that is asked for; *nothing* is a call that asks for none. Time of child processes
(Java) counts. What the machine lacks (Java, the jars of SPICE) is named, not measured.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from pathlib import Path

from rb.core.exit_codes import FINISHED
from rb.core.metrics import METRICS
from rb.core.model_config import at_least
from rb.core.output import aligned, say, say_json
from rb.core.seeding import generator
from rb.evaluation.caption_metrics import cpu_seconds, score_captions

NOTHING, EVERYTHING = "nothing", "all"
REFERENCES = 3
_WHAT = ("man", "woman", "dog", "chair", "table", "car", "cup", "screen", "plant", "shelf", "bag", "lamp")
_HOW = ("small", "large", "red", "blue", "wooden", "black", "round", "old", "white", "tall", "open", "striped")
_WHERE = ("left of", "right of", "behind", "in front of", "next to", "under", "on top of", "between")


def captions(number: int) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Predictions and references of so many examples, the same each time."""
    rng = generator("bench score", number)

    def text() -> str:
        one, other = (f"{rng.choice(_HOW)} {rng.choice(_WHAT)}" for _ in range(2))
        return f"the {one} {rng.choice(_WHERE)} the {other}"

    ids = [f"example-{k}" for k in range(number)]
    return {i: text() for i in ids}, {i: [text() for _ in range(REFERENCES)] for i in ids}


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    at_least("--captions", args.captions, 1)
    unknown = [name for name in args.metrics or () if name not in METRICS]
    if unknown:
        raise ValueError(f"--metrics {unknown[0]}: unknown; choose from {', '.join(METRICS)}")
    predictions, references = captions(args.captions)
    seconds: dict[str, float] = {}
    skipped: dict[str, str] = {}
    every = args.metrics or list(METRICS)
    for name, wanted in ((NOTHING, []), *((metric, [metric]) for metric in every), (EVERYTHING, every)):
        with tempfile.TemporaryDirectory() as cache:  # SPICE parses every caption
            before = cpu_seconds()
            found = score_captions(predictions, references, not args.no_java, Path(cache), wanted)
            took = cpu_seconds() - before
        reasons = [found.skipped[metric] for metric in wanted if metric in found.skipped]
        if reasons and name != EVERYTHING:
            skipped[name] = reasons[0]
        else:
            seconds[name] = took
    tree = {
        "captions": args.captions,
        "references": REFERENCES,
        "machine": platform.platform(),
        "cpu_seconds": seconds,
        "skipped": skipped,
    }
    if args.json:
        say_json(tree)
        return FINISHED
    say(f"{args.captions} captions with {REFERENCES} references each; {platform.platform()}")
    rows = [("asked for", "CPU seconds"), *((name, f"{value:.2f}") for name, value in seconds.items())]
    for line in aligned(rows, 1):
        say(line)
    for name, reason in skipped.items():
        say(f"{name}: not measured: {reason}")
    return FINISHED
