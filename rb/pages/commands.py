"""``rb report``, ``rb compare``, ``rb data show``: the commands that write pages to open in a browser."""

from __future__ import annotations

import argparse
from pathlib import Path

from rb.core.exit_codes import FINISHED
from rb.core.output import add_json, note, say, say_json
from rb.core.urls import location_argument

SHOWN_EXAMPLES = 24  # of rb data show


def add_report(parser: argparse.ArgumentParser) -> None:
    """``rb report``."""
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="run folder, also of a run under way")
    parser.add_argument("--examples", type=int, default=12, help="random, best and worst examples per set, each (12)")
    parser.set_defaults(run=run_report)


def run_report(args: argparse.Namespace) -> int:
    """Write RUN_DIR/report.html: curves, scores and a gallery."""
    from rb.pages.report import build_report

    say(_page(build_report(args.run_dir, args.examples)))
    return FINISHED


def add_compare(parser: argparse.ArgumentParser) -> None:
    """``rb compare``."""
    parser.add_argument("paths", nargs="+", type=Path, help="prediction files or run folders; each against the first")
    parser.add_argument("--allow", action="append", default=[], metavar="DIFFERENCE", help="allow this difference")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page too, with the examples furthest apart")
    parser.add_argument("--paper", action="store_true", help="add the paper's Table 1 values, marked as the paper's")
    parser.add_argument("--examples", type=int, default=5, help="examples that differ most to list, per direction (5)")
    parser.add_argument("--no-java", action="store_true", help="without the PTB tokeniser")
    add_json(parser)
    parser.set_defaults(run=run_compare)


def run_compare(args: argparse.Namespace) -> int:
    """Compare prediction files, or run folders by equal file names."""
    from rb.evaluation.comparing import DIFFERENCES, compare, find_groups
    from rb.evaluation.comparison_text import format_comparison
    from rb.evaluation.paper import format_table1, read_paper
    from rb.pages.comparison_page import write_comparison

    unknown = [name for name in args.allow if name not in DIFFERENCES]
    if unknown:
        raise ValueError(f"--allow {unknown[0]}: unknown; choose from {', '.join(DIFFERENCES)}")
    if args.examples < 0:
        raise ValueError(f"--examples must be at least 0, got {args.examples}")
    groups = find_groups(args.paths)
    found = {name: compare(paths, args.allow, not args.no_java, args.examples) for name, paths in groups.items()}
    if args.html is not None:
        write_comparison(args.html, found, args.paper)
        note(_page(args.html))
    if args.json:
        say_json({"sets": found, **({"paper": read_paper()} if args.paper else {})})
        return FINISHED
    for name, one in found.items():
        say(format_comparison(name, one))
        if args.paper:
            say(format_table1(one["files"][0]["modality"]))
    return FINISHED


def add_show(parser: argparse.ArgumentParser) -> None:
    """``rb data show``."""
    parser.add_argument("manifest", type=location_argument, help="a manifest.json, or its folder; a path or a URL")
    parser.add_argument("--out", type=Path, required=True, help="the page to write, e.g. page.html")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--index", type=int, metavar="N", help="show only example N, counted from 0")
    which.add_argument(
        "--count", type=int, default=SHOWN_EXAMPLES, help=f"examples, evenly spread over the set ({SHOWN_EXAMPLES})"
    )
    parser.add_argument("--random", action="store_true", help="random examples instead of evenly spread ones")
    parser.add_argument("--seed", type=int, default=0, help="of --random: the same seed shows the same examples (0)")
    parser.set_defaults(run=run_show)


def run_show(args: argparse.Namespace) -> int:
    """Write a page of examples."""
    from rb.pages.show_data import show_data

    shown = show_data(args.manifest, args.out, args.index, args.count, args.seed if args.random else None)
    say(f"{args.out}: {shown} examples, open it in a browser")
    return FINISHED


def _page(path: Path) -> str:
    return f"{path}: {path.stat().st_size / 1e6:.1f} MB, open it in a browser"
