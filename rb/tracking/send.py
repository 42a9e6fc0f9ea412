"""``python -m rb.tracking.send RUN_DIR SECONDS``: copy a run's journal to MLflow, in a process that ends itself after SECONDS.

Started by ``closing.py``, for a supervisor that must neither import MLflow (2.7 s) nor wait for a server that hangs. Exit code 0: MLflow has
everything; else stdout says why not.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from rb.core.exit_codes import FAILED, FINISHED, leave
from rb.core.locks import FileLock
from rb.core.output import say
from rb.core.run_layout import TRACKING_LOCK
from rb.tracking.copier import JournalCopier, retry_errors
from rb.tracking.errors import TrackingError, reason


def main(run_dir: str, seconds: str) -> int:
    """The exit code."""
    signal.setitimer(signal.ITIMER_REAL, float(seconds))  # SIGALRM ends this process, also while a library waits
    folder = Path(run_dir)
    if not FileLock(folder / TRACKING_LOCK).acquire():
        say("another process tracks the run")
        return FAILED
    expected: tuple[type[Exception], ...] = (TrackingError, *retry_errors())
    try:
        JournalCopier(folder).pump()
    except expected as error:
        say(reason(error))
        return FAILED
    return FINISHED


if __name__ == "__main__":
    leave(main(*sys.argv[1:]))
