"""``python -m eval.report RUN_DIR``: the run's one self-contained HTML page, ``RUN_DIR/report.html``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rb.pages.report import build_report


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and print its path; what a user can cause ends in one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.report", description="Curves, scores and a gallery on one page."
    )
    parser.add_argument("run_dir", type=Path, help="run folder")
    parser.add_argument("--examples", type=int, default=12, help="random, best and worst examples per set, each")
    args = parser.parse_args(argv)
    try:
        path = build_report(args.run_dir, args.examples)
    except (ValueError, OSError) as error:
        print(f"eval.report: error: {error}", file=sys.stderr)
        return 2
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, open it in a browser")
    return 0


if __name__ == "__main__":
    sys.exit(main())
