"""``rb config show | diff | keys``: what a run file means, how two runs differ, and every key there is."""

from __future__ import annotations

import argparse
import json

from rb.core.exit_codes import FAILED, FINISHED
from rb.core.output import add_json, say, say_json

RUN = "run file, run folder, or name of one of the project's runs (toy_opt)"


def add_show(parser: argparse.ArgumentParser) -> None:
    """``rb config show``."""
    parser.add_argument("run_name", metavar="RUN", help=RUN)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.max_steps=100")
    add_json(parser)
    parser.set_defaults(run=_show)


def add_diff(parser: argparse.ArgumentParser) -> None:
    """``rb config diff``."""
    parser.description = "List the keys in which two runs differ; exit code 0: none, 1: some, 2: an error (as diff)."
    parser.add_argument("first", metavar="A", help=RUN)
    parser.add_argument("second", metavar="B", help=RUN)
    add_json(parser)
    parser.set_defaults(run=_diff)


def add_keys(parser: argparse.ArgumentParser) -> None:
    """``rb config keys``."""
    parser.add_argument("prefix", nargs="?", default="", help="only keys that begin with this, e.g. model.lora")
    add_json(parser)
    parser.set_defaults(run=_keys)


def _show(args: argparse.Namespace) -> int:
    from rb.core.run_file import dump_run, to_tree
    from rb.core.run_paths import view_run

    config = view_run(args.run_name, args.overrides)
    if args.json:
        say_json(to_tree(config))
    else:
        say(dump_run(config).rstrip("\n"))
    return FINISHED


def _diff(args: argparse.Namespace) -> int:
    from rb.core.run_file import to_tree
    from rb.core.run_paths import view_run
    from rb.tracking.tracker import flatten

    first, second = (flatten(to_tree(view_run(name))) for name in (args.first, args.second))
    keys = [key for key in dict.fromkeys((*first, *second)) if first.get(key) != second.get(key)]
    if args.json:
        rows = [{"key": key, "first": first.get(key), "second": second.get(key)} for key in keys]
        say_json(rows)
    else:
        for key in keys:
            say(f"{key}: {first.get(key, '(none)')} -> {second.get(key, '(none)')}")
    return FAILED if keys else FINISHED


def _keys(args: argparse.Namespace) -> int:
    import dataclasses

    from rb.core.config_keys import all_keys
    from rb.core.run_file import to_tree

    rows = [key for key in all_keys() if key.name.startswith(args.prefix)]
    if not rows:
        raise ValueError(f"no key begins with {args.prefix!r}; `rb config keys` lists all")
    given = {key.name: None if key.default is dataclasses.MISSING else to_tree(key.default) for key in rows}
    if args.json:
        listed = [{"key": k.name, "type": k.type, "default": given[k.name], "meaning": k.sentence} for k in rows]
        say_json(listed)
        return FINISHED
    for key in rows:
        default = "must be given" if key.default is dataclasses.MISSING else f"default {json.dumps(given[key.name])}"
        say(f"{key.name}  ({key.type}, {default})\n    {key.sentence}")
    return FINISHED
