"""``-q`` and ``-v``: how much a command says on stderr. Processes that a command starts take over its choice.

quiet: errors only, no progress bars. verbose: the project's own log lines, and warnings of libraries that are hidden otherwise.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from contextlib import suppress

from rb.core.quiet import quiet_libraries

VARIABLE = "RB_VERBOSITY"  # in the environment, so that ranks and other commands inherit it
QUIET, NORMAL, VERBOSE = "quiet", "normal", "verbose"
_LEVELS = {QUIET: logging.ERROR, NORMAL: logging.WARNING, VERBOSE: logging.INFO}


class _Console(logging.Handler):
    """Log lines to stderr, above a progress bar that may be shown there. Each process has one."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        with suppress(OSError):  # a file on a full disk; the log is no reason to stop
            tqdm.write(self.format(record), file=sys.stderr)


_CONSOLE = _Console()


def add_options(parser: argparse.ArgumentParser) -> None:
    """``-q`` and ``-v``, which every command has."""
    group = parser.add_mutually_exclusive_group()
    for short, value, help_text in (("-q", QUIET, "say only errors"), ("-v", VERBOSE, "say more")):
        group.add_argument(short, f"--{value}", dest="verbosity", action="store_const", const=value, help=help_text)


def set_verbosity(value: str | None) -> None:
    """From now on ``value``; none is what the starting process chose, or normal. Call before libraries are imported."""
    value = value or verbosity()
    os.environ[VARIABLE] = value
    _show(_LEVELS[value])
    logging.getLogger().setLevel(logging.ERROR if value == QUIET else logging.WARNING)
    logging.getLogger("rb").setLevel(_LEVELS[value])
    if value != VERBOSE:
        quiet_libraries()


def verbosity() -> str:
    """``quiet``, ``normal`` or ``verbose``."""
    value = os.environ.get(VARIABLE, NORMAL)
    return value if value in _LEVELS else NORMAL


def show_progress_lines(detail: str) -> None:
    """From now on stderr shows the project's log lines of a long job, those of the logger ``detail`` only with ``-v``."""
    logging.getLogger("rb").setLevel(logging.INFO)
    if verbosity() == NORMAL:
        _CONSOLE.addFilter(lambda record: record.name != detail)
    _show(logging.ERROR if verbosity() == QUIET else logging.INFO)


def _show(level: int) -> None:
    root = logging.getLogger()
    if _CONSOLE not in root.handlers:
        root.addHandler(_CONSOLE)
    _CONSOLE.setLevel(level)
