"""``rb bench score``: processor time of scoring N made-up captions, by metric, by the entry that ``rb score`` uses.

One call scores them, so that each Java program starts once, as in ``rb score``. *tokeniser* is what every call does first. Metrics that have a value for each
caption (CIDEr) are computed whether they are asked for or not. Time of child processes (Java) counts. Nearly all of the made-up texts are different, which is
the worst case of SPICE: it parses each different text; ``--texts`` lets them repeat, as those of real sets do. What the machine lacks (Java, the jars of
SPICE) is named, not measured.
"""

from __future__ import annotations

import argparse
import platform
import resource
import tempfile
from pathlib import Path

import numpy as np

from rb.core.exit_codes import FINISHED
from rb.core.metrics import METRICS
from rb.core.model_config import at_least
from rb.core.output import aligned, say, say_json
from rb.core.seeding import generator
from rb.evaluation.caption_metrics import CaptionSet, score_sets
from rb.evaluation.java import STARTS
from rb.evaluation.spice import PARSED

REFERENCES = 3
_WHAT = ("man", "woman", "dog", "chair", "table", "car", "cup", "screen", "plant", "shelf", "bag", "lamp")
_HOW = ("small", "large", "red", "blue", "wooden", "black", "round", "old", "white", "tall", "open", "striped")
_WHERE = ("left of", "right of", "behind", "in front of", "next to", "under", "on top of", "between")
MOST_TEXTS = 100_000  # of 165,888 that can be made


def captions(number: int, different: int | None = None) -> CaptionSet:
    """Predictions and references of so many examples, the same each time; each out of so many ``different`` texts, or each at random.

    A larger ``different`` has the texts of a smaller one too.
    """
    pool: dict[str, None] = {}
    rng = generator("bench score texts")
    while len(pool) < (different or 0):
        pool[_text(rng)] = None
    some = list(pool)
    rng = generator("bench score", number)

    def text() -> str:
        return some[rng.integers(len(some))] if some else _text(rng)

    ids = [f"example-{k}" for k in range(number)]
    return CaptionSet({i: text() for i in ids}, {i: [text() for _ in range(REFERENCES)] for i in ids})


def _text(rng: np.random.Generator) -> str:
    one, other = (f"{rng.choice(_HOW)} {rng.choice(_WHAT)}" for _ in range(2))
    return f"the {one} {rng.choice(_WHERE)} the {other}"


def peak_memory_gb() -> float:
    """The most of this process and the most of one of its children that have ended; those of the scorers run one after the other."""
    return sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 2**20


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    at_least("--captions", args.captions, 1)
    unknown = [name for name in args.metrics or () if name not in METRICS]
    if unknown:
        raise ValueError(f"--metrics {unknown[0]}: unknown; choose from {', '.join(METRICS)}")
    if args.texts is not None and not 1 <= args.texts <= MOST_TEXTS:
        raise ValueError(f"--texts {args.texts}: must be 1 to {MOST_TEXTS:,}")
    made = captions(args.captions, args.texts)
    texts = [*made.predictions.values(), *(text for some in made.references.values() for text in some)]
    seconds: dict[str, float] = {}
    started, parsed = STARTS.copy(), PARSED["texts"]
    with tempfile.TemporaryDirectory() as own:  # an empty one: SPICE parses every text
        cache = args.spice_cache or Path(own)
        found = score_sets([made], not args.no_java, cache, args.metrics or list(METRICS), cpu_s=seconds)[0]
    tree = {
        "captions": args.captions,
        "references": REFERENCES,
        "different_texts": len(set(texts)),
        "machine": platform.platform(),
        "cpu_seconds": {name: took for name, took in seconds.items() if name not in found.skipped},
        "java_starts": dict(STARTS - started),
        "texts_parsed": PARSED["texts"] - parsed,
        "peak_memory_gb": peak_memory_gb(),
        "skipped": found.skipped,
    }
    if args.json:
        say_json(tree)
        return FINISHED
    say(
        f"{args.captions:,} captions with {REFERENCES} references each, {tree['different_texts']:,} different texts; {platform.platform()}; "
        f"at most {tree['peak_memory_gb']:.1f} GB"
    )
    rows = [("", "CPU seconds"), *((name, f"{value:.2f}") for name, value in tree["cpu_seconds"].items())]
    for line in aligned(rows, 1):
        say(line)
    for name, count in tree["java_starts"].items():
        say(f"{name}: {count} Java process{'' if count == 1 else 'es'}")
    if tree["texts_parsed"]:
        say(f"SPICE parsed {tree['texts_parsed']:,} texts")
    for name, reason in found.skipped.items():
        say(f"{name}: not measured: {reason}")
    return FINISHED
