"""What commands print on stdout: lines for people, or one JSON document with ``--json``."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``, for every command that prints a table."""
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")


def say(text: str) -> None:
    """One or more lines, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def say_json(value: Any) -> None:
    """``value`` as JSON; NaN is a fault of ours."""
    say(json.dumps(value, indent=1, allow_nan=False))


def note(text: str) -> None:
    """A line on stderr, which is not part of the result."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
