"""``-q`` and ``-v``: how much a command says on stderr. Processes that a command starts take over its choice.

quiet: errors only, no progress bars. verbose: the project's own log lines, and warnings of libraries that are hidden otherwise.
"""

from __future__ import annotations

import argparse
import logging
import os

from rb.core.quiet import quiet_libraries

VARIABLE = "RB_VERBOSITY"  # in the environment, so that ranks and other commands inherit it
QUIET, NORMAL, VERBOSE = "quiet", "normal", "verbose"
_LEVELS = {QUIET: logging.ERROR, NORMAL: logging.WARNING, VERBOSE: logging.INFO}


def add_options(parser: argparse.ArgumentParser) -> None:
    """``-q`` and ``-v``, which every command has."""
    group = parser.add_mutually_exclusive_group()
    for short, value, help_text in (("-q", QUIET, "say only errors"), ("-v", VERBOSE, "say more")):
        group.add_argument(short, f"--{value}", dest="verbosity", action="store_const", const=value, help=help_text)


def set_verbosity(value: str | None) -> None:
    """From now on ``value``; none is what the starting process chose, or normal. Call before libraries are imported."""
    value = value or verbosity()
    os.environ[VARIABLE] = value
    logging.basicConfig(format="%(message)s")
    logging.getLogger().setLevel(logging.ERROR if value == QUIET else logging.WARNING)
    logging.getLogger("rb").setLevel(_LEVELS[value])
    if value != VERBOSE:
        quiet_libraries()


def verbosity() -> str:
    """``quiet``, ``normal`` or ``verbose``."""
    value = os.environ.get(VARIABLE, NORMAL)
    return value if value in _LEVELS else NORMAL
