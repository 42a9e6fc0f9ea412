"""``python -m eval.score FILE...``: caption metrics of prediction files; several files share one METEOR process."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rb.evaluation.caption_metrics import METRICS
from rb.evaluation.meteor import Meteor
from rb.evaluation.scoring import metrics_path, score_file
from rb.evaluation.spice import default_cache
from rb.toy.world.judge import toy_judge


def main(argv: Sequence[str] | None = None) -> int:
    """Scores each file; what a user can cause ends in one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m eval.score", description="Score prediction files.")
    parser.add_argument("predictions", nargs="+", type=Path, help="files that eval.predict wrote, one set each")
    parser.add_argument("--out", type=Path, help="metrics.json (one file only); default RUN_DIR/metrics/NAME.json")
    parser.add_argument(
        "--truth", action="append", type=Path, metavar="FILE", help="toy world: truth.json of the scenes (repeatable)"
    )
    parser.add_argument("--metrics", nargs="+", default=METRICS, choices=METRICS, help="only these")
    parser.add_argument("--no-java", action="store_true", help="without METEOR, SPICE and the PTB tokeniser")
    parser.add_argument("--no-mlflow", action="store_true", help="do not log the scores")
    parser.add_argument("--spice-cache", type=Path, default=default_cache(), help="folder of SPICE's parsed captions")
    parser.add_argument("--no-spice-cache", action="store_const", const=None, dest="spice_cache", help="parse all anew")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        if args.out and len(args.predictions) > 1:
            raise ValueError("--out names one file, but several files are to be scored; leave it out")
        judge = toy_judge(args.truth) if args.truth else None
        said: set[str] = set()
        with Meteor() as meteor:
            for path in args.predictions:
                result = score_file(
                    path,
                    out=args.out,
                    use_java=not args.no_java,
                    use_mlflow=not args.no_mlflow,
                    spice_cache=args.spice_cache,
                    metrics=args.metrics,
                    meteor=meteor,
                    judge=judge,
                )
                _tell(result, args.out or metrics_path(path), said)
    except (ValueError, OSError) as error:
        print(f"eval.score: error: {error}", file=sys.stderr)
        return 2
    return 0


def _tell(result: dict[str, Any], out: Path, said: set[str]) -> None:
    """One line of scores on stdout; what was skipped and why once on stderr."""
    scores = "  ".join(f"{name} {value:.4f}" for name, value in result["scores"].items() if value is not None)
    print(f"{out}: {result['num_examples']:,} captions  {scores}", flush=True)
    lines = [f"skipped {name}: {reason}" for name, reason in result["skipped"].items()]
    if result["tokeniser"] != "ptb":
        lines.append(
            "note: tokenised without Stanford's PTB tokeniser, so scores may differ slightly from published ones"
        )
    for line in lines:
        if line not in said:
            print(line, file=sys.stderr)
            said.add(line)


if __name__ == "__main__":
    # A plain SIGTERM would leave the Java processes running; as an exit it unwinds and takes them along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
