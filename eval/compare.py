"""``python -m eval.compare A B [C ...]``: prediction files, or run folders by equal file names, each against the first."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rb.evaluation.comparing import DIFFERENCES, compare, find_groups
from rb.evaluation.comparison_text import format_comparison
from rb.evaluation.paper import format_table1, read_paper
from rb.pages.comparison_page import write_comparison


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the comparison; what a user can cause ends in one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m eval.compare", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, help="prediction files or run folders")
    parser.add_argument("--allow", action="append", default=[], choices=DIFFERENCES, help="compare in spite of it")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="a page too, with pictures of the examples furthest apart"
    )
    parser.add_argument("--paper", action="store_true", help="the paper's Table 1 values too, marked as the paper's")
    parser.add_argument("--examples", type=int, default=5, help="listed examples that differ most, per direction")
    parser.add_argument("--no-java", action="store_true", help="without the PTB tokeniser")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        if args.examples < 0:
            raise ValueError(f"--examples must be at least 0, got {args.examples}")
        groups = find_groups(args.paths)
        found = {name: compare(paths, args.allow, not args.no_java, args.examples) for name, paths in groups.items()}
        if args.html is not None:
            write_comparison(args.html, found, args.paper)
    except (ValueError, OSError) as error:
        print(f"eval.compare: error: {error}", file=sys.stderr)
        return 2
    if args.html is not None:
        print(f"{args.html}: {args.html.stat().st_size / 1e6:.1f} MB, open it in a browser", file=sys.stderr)
    if args.json:
        print(json.dumps({"sets": found, **({"paper": read_paper()} if args.paper else {})}, indent=1, allow_nan=False))
        return 0
    for name, one in found.items():
        print(format_comparison(name, one))
        if args.paper:
            print(format_table1(one["files"][0]["modality"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
