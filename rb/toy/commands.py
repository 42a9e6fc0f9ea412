"""``rb toy``: the toy world's raw files, and the demo that runs the whole chain on them."""

from __future__ import annotations

import argparse

from rb.toy import demo
from rb.toy.raw import data_sets as raw


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """``rb toy {raw,demo}``."""
    parser = commands.add_parser("toy", help="the toy world: raw files in the real layouts, and the demo")
    rooms = parser.add_subparsers(dest="toy_command", required=True, metavar="COMMAND")
    for room in (raw, demo):
        room.add_commands(rooms)
