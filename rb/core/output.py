"""What commands print on stdout: lines for people, or one JSON document with ``--json``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from rb.core.files import CannotWriteError


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``, for every command that prints a table."""
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")


def say(text: str) -> None:
    """One or more lines, at once; ``CannotWriteError`` where stdout is a file that takes no more."""
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CannotWriteError(error.errno, f"stdout: cannot be written ({error.strerror})") from error


def say_json(value: Any) -> None:
    """``value`` as JSON; NaN is a fault of ours."""
    say(json.dumps(value, indent=1, allow_nan=False))


def aligned(rows: Sequence[Sequence[str]], num_texts: int, indent: str = "") -> list[str]:
    """Rows of equal length as lines of a plain table: the first ``num_texts`` columns to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        (
            indent
            + "  ".join(
                t.ljust(w) if i < num_texts else t.rjust(w) for i, (t, w) in enumerate(zip(row, widths, strict=True))
            )
        ).rstrip()
        for row in rows
    ]


def figure(value: float) -> str:
    """A measured number with four significant digits; from 1,000 on in full, without powers of ten."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def note(text: str) -> None:
    """A line on stderr, which is not part of the result: that it cannot be written is no fault of the command."""
    with suppress(OSError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
