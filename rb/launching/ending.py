"""What is made of an attempt's end: the report of a hang, the status in journal and MLflow, the exit code and its line for people."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from rb.core.exit_codes import STOPPED
from rb.core.output import note
from rb.core.run_layout import RUN_JOURNAL
from rb.launching.hang_report import write_report
from rb.launching.job import Ended
from rb.launching.states import NodeState
from rb.launching.verdict import Verdict
from rb.tracking.closing import close_ended_run
from rb.training.run_end import outcome, read_end

log = logging.getLogger(__name__)


class Ending:
    """The end of one attempt.

    Args:
        run_dir: the run folder.
        attempt: its name, which the ranks write into their end marker.
        command: of the user, for what is said.
    """

    def __init__(self, run_dir: Path, attempt: str, command: str) -> None:
        self._run_dir, self._attempt, self._command = run_dir, attempt, command
        self._report: Path | None = None

    def report(self, verdict: Verdict, nodes: Sequence[NodeState]) -> None:
        """Write the report of a hang or a lost node into the run folder, where that exists."""
        note(verdict.sentence)
        if not self._run_dir.is_dir():
            return
        try:
            self._report = write_report(self._run_dir, verdict, nodes)
        except OSError as error:
            log.warning("the report of the hang cannot be written: %s", error)

    def code(self, ended: Ended) -> int:
        """The exit code; a line on stderr where the run broke off."""
        end = read_end(self._run_dir)
        if (end is None or end.attempt != self._attempt) and (self._run_dir / RUN_JOURNAL).is_file():
            close_ended_run(self._run_dir, "KILLED" if ended.code == STOPPED else "FAILED")
        how = ended.verdict.sentence if ended.verdict else ""
        if self._report is not None:
            how += f"; report: {self._report}"
        return outcome(self._run_dir, self._attempt, ended.code, how, self._command)
