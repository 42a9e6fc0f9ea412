"""``python -m eval.table RUN_DIR``: the paper's Table 1 from the run's scored predictions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rb.evaluation.table import format_table, format_truth, read_metrics


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; what a user can cause ends in one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m eval.table", description="Table 1 from RUN_DIR/metrics/*.json.")
    parser.add_argument("run_dir", type=Path)
    args = parser.parse_args(argv)
    try:
        metrics = read_metrics(args.run_dir)
        truth = format_truth(metrics)
        print(format_table(metrics) + (f"\n{truth}" if truth else ""), end="")
    except (ValueError, OSError) as error:
        print(f"eval.table: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
