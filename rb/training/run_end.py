"""How a run ended, in the run's own words: rank 0 writes `RUN_DIR/end.json` as its last act, and `rb train` takes its exit code from there.

A launcher cannot know: one that was killed says nothing of its ranks, and ranks may end well although the folder that they wrote to is gone. A run
folder without the file is of a run that still goes, or that broke off. Imports nothing heavy: `rb train` itself reads it.
"""

from __future__ import annotations

import os
import secrets
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rb.core.exit_codes import ABORTED, CANNOT_WRITE, FAILED, FINISHED, STOPPED, WRONG_REQUEST
from rb.core.files import write_json
from rb.core.output import note
from rb.core.run_layout import RUN_CONFIG, RUN_END
from rb.core.strict_json import parse

ATTEMPT_VARIABLE = "RB_ATTEMPT"  # environment variable of the ranks: which start of the run they belong to
FORMAT = 1
_SAID = (
    STOPPED,
    WRONG_REQUEST,
    ABORTED,
    CANNOT_WRITE,
)  # codes that ranks end with by themselves, after a line that says why


@dataclass(frozen=True)
class RunEnd:
    """The content of `end.json`."""

    attempt: str
    """Who started the ranks, in a word that nobody else has; empty where nobody gave them one."""
    code: int
    """Exit code of `rb train`."""
    step: int
    """Steps made."""
    total_steps: int
    ended: str
    """Local time."""


def new_attempt() -> str:
    """A word for one start of a run."""
    return secrets.token_hex(8)


def write_end(run_dir: Path, code: int, step: int, total_steps: int) -> None:
    """Write the marker, of the attempt in this process's environment. The folder must exist."""
    ended = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    end = RunEnd(os.environ.get(ATTEMPT_VARIABLE, ""), code, step, total_steps, ended)
    write_json(run_dir / RUN_END, {"format": FORMAT} | asdict(end))


def clear_end(run_dir: Path) -> None:
    """Take away the marker of an earlier attempt: a new one begins."""
    (run_dir / RUN_END).unlink(missing_ok=True)


def read_end(run_dir: Path) -> RunEnd | None:
    """The marker; none where there is none, or none that this version can read."""
    file = run_dir / RUN_END
    try:
        tree = parse(file.read_bytes(), str(file))
    except (OSError, ValueError):
        return None
    if not isinstance(tree, dict) or tree.pop("format", None) != FORMAT:
        return None
    try:
        end = RunEnd(**tree)
    except TypeError:
        return None
    return end if type(end.code) is int and type(end.step) is int else None


def outcome(run_dir: Path, attempt: str, code: int, how: str = "", command: str = "rb train") -> int:
    """The exit code of an attempt whose ranks have all ended; a line on stderr where the run broke off.

    Args:
        run_dir: the run folder.
        attempt: that started them.
        code: of who started them.
        how: a sentence on what went wrong, where that is known.
        command: for the line.
    """
    how = how or _how(code)
    end = read_end(run_dir)
    if end is not None and end.attempt == attempt:
        if code not in (FINISHED, end.code):
            note(f"{command}: {how}; the run itself ended with code {end.code} at step {end.step} of {end.total_steps}")
        return end.code
    if code in _SAID:  # after a line that says why
        return code
    begun = (run_dir / RUN_CONFIG).is_file()
    remedy = f"go on with --resume {run_dir}" if begun else "the same command starts again"
    note(f"{command}: error: {run_dir}: the run did not finish ({how}); {remedy}")
    return code or FAILED


def _how(code: int) -> str:
    if code == FINISHED:
        return "its ranks left without a word"
    if code > 128:
        memory = ", as the kernel does where memory is short" if code == 128 + signal.SIGKILL else ""
        return f"its launcher or a rank was ended by signal {code - 128}{memory}"
    return f"exit code {code}"
