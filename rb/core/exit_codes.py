"""Exit codes of the project's commands, and how an entry point ends. The one place where they are written down.

Imports the standard library and `files.py`, which does so too, so that every entry can use it before torch is loaded.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from rb.core.files import REFUSED

FINISHED = 0
FAILED = 1  # a check found something wrong, or one of several jobs failed
WRONG_REQUEST = 2  # what a user can cause: a wrong argument, a missing or altered file
CANNOT_WRITE = 73  # EX_CANTCREAT: the disk is full, over its quota or read-only; what was written before is intact
ABORTED = 3  # training: too many bad steps in a row
HUNG = 4  # training: a rank made no progress within the limit of its phase
NODE_LOST = 5  # training: a node no longer answers, or its agent ended
STOPPED = 75  # EX_TEMPFAIL: asked to stop, saved; the same command continues


USER_ERRORS = (ValueError, OSError)  # what a user can cause


def wrong_request(name: str, error: Exception) -> int:
    """Say on stderr, in one line, what a user caused with the command ``name``; returns its exit code."""
    with suppress(OSError):  # stderr may be a file on the same full disk
        sys.stderr.write(f"{name}: error: {error}\n")
        sys.stderr.flush()
    return code_of(error)


def code_of(error: Exception) -> int:
    """CANNOT_WRITE where a file system took no more, WRONG_REQUEST for everything else that a user can cause."""
    return CANNOT_WRITE if isinstance(error, OSError) and error.errno in REFUSED else WRONG_REQUEST


def guarded(name: str, work: Callable[[], int]) -> int:
    """``work()``'s exit code; what a user can cause (``ValueError``, ``OSError``) ends in one line on stderr and the code of the error.

    Args:
        name: of the command, for the line.
        work: the command.
    """
    try:
        return work()
    except BrokenPipeError:  # whoever read stdout has left, as `head` does: no fault of the command
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINISHED
    except USER_ERRORS as error:
        return wrong_request(name, error)


def leave(code: int) -> NoReturn:
    """End this process with ``code``, all output written. The last call of an entry that used a process group.

    Not ``sys.exit``: gloo's threads may still run when the interpreter takes its C++ objects down, and then the process aborts after all
    its work is done (measured: 1 of 16 runs of 2 ranks ended with SIGABRT).
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)
