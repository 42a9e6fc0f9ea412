"""``rb runs list | show | copy``: the run files and plans that come with the project, from a checkout or a wheel."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rb.core.exit_codes import FINISHED
from rb.core.install import ABLATIONS, EVALUATIONS, RUNS, find_shipped, shipped_files
from rb.core.output import add_json, say, say_json

_KINDS = {RUNS: "run", ABLATIONS: "ablation plan", EVALUATIONS: "evaluation plan"}
_USES = {
    "runs": "train --run",
    "ablations": "ablate --plan",
    "evaluations": "evaluate --plan",
}  # folder -> the command that reads its files


def add_runs_list(parser: argparse.ArgumentParser) -> None:
    """``rb runs list``."""
    add_json(parser)
    parser.set_defaults(run=_list)


def add_runs_show(parser: argparse.ArgumentParser) -> None:
    """``rb runs show``."""
    parser.add_argument("name", help="as rb runs list shows it, e.g. toy_opt")
    parser.set_defaults(run=_show)


def add_runs_copy(parser: argparse.ArgumentParser) -> None:
    """``rb runs copy``."""
    parser.add_argument("name", help="as rb runs list shows it, e.g. toy_opt")
    parser.add_argument("target", type=Path, nargs="?", default=Path(), help="file or folder (default: this folder)")
    parser.set_defaults(run=_copy)


def _list(args: argparse.Namespace) -> int:
    rows = [
        {"name": path.stem, "kind": kind, "purpose": purpose(path), "file": str(path)}
        for folder, kind in _KINDS.items()
        for path in shipped_files(folder)
    ]
    if args.json:
        say_json(rows)
        return FINISHED
    width = max(len(row["name"]) for row in rows)
    for kind in _KINDS.values():
        say(f"{kind}s:")
        for row in rows:
            if row["kind"] == kind:
                say(f"  {row['name']:<{width}}  {row['purpose']}")
    return FINISHED


def _show(args: argparse.Namespace) -> int:
    sys.stdout.write(_found(args.name).read_text(encoding="utf-8"))
    return FINISHED


def _copy(args: argparse.Namespace) -> int:
    source = _found(args.name)
    target = args.target / source.name if args.target.is_dir() else args.target
    if target.exists():
        raise ValueError(f"{target}: exists already; name another file")
    target.write_bytes(source.read_bytes())
    say(f"{target}: edit it, then rb {_USES[source.parent.name]} {target}")
    return FINISHED


def _found(name: str) -> Path:
    path = find_shipped(name, *_KINDS)
    if path is None:
        raise ValueError(f"{name}: no such run file or plan; `rb runs list` shows them")
    return path


def purpose(path: Path) -> str:
    """The first sentence of a file's header, which is ``# Purpose: ...``."""
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.removeprefix("# Purpose:").lstrip("# ").split(". ")[0].strip().rstrip(".")
