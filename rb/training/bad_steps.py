"""What happens in a step whose loss or gradient is not finite: nothing moves on any rank, and rank 0 writes down what was in it.

That nothing moves is the engine's doing. Here: the log's lines, the journal's row, the counts, and how many there were in a row.
"""

from __future__ import annotations

import logging
from pathlib import Path

from rb.core import dist
from rb.core.run_layout import RUN_JOURNAL
from rb.tracking import Tracker
from rb.tracking.bad_steps import BadCounts, BadStep, RankLosses, read_bad_steps
from rb.training.engine import StepResult

log = logging.getLogger(__name__)


class BadSteps:
    """The skipped steps of a run. Every rank has the object and makes the same calls; what was counted is on rank 0 only.

    Args:
        run_dir: the run folder, whose journal says what was skipped before step ``start``.

    Attributes:
        in_a_row: skipped up to now without a good one between them, in this process; the same on all ranks.
    """

    def __init__(self, run_dir: Path, start: int) -> None:
        self.in_a_row = 0
        earlier = read_bad_steps(run_dir / RUN_JOURNAL) if dist.is_main() and start else []
        self._counts = BadCounts(bad for bad in earlier if bad.step <= start)

    def add(self, done: int, modality: str, result: StepResult, tracker: Tracker) -> None:
        """Note a step: a good one ends the row; of a bad one the losses and samples of every rank are written. Collective."""
        if result.applied:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        losses = {term: value.item() for term, value in result.terms.items()}
        ranks = dist.gather_objects(RankLosses(losses, result.ids, result.positions))
        if ranks is None:
            return
        bad = BadStep(done, modality, tuple(ranks))
        self._counts.add(bad)
        tracker.bad_step(bad)
        what = ", ".join(f"{term} on {count} ranks" for term, count in bad.counts().items())
        for rank, one in enumerate(ranks):
            log.warning(
                "step %d (%s): skipped, not finite: %s; rank %d: losses %s, samples %s, positions %s",
                *(done, modality, what, rank, one.losses, one.ids, one.positions),
            )

    def values(self) -> dict[str, float]:
        """Counts since the run's first step, over all ranks, by metric name. For rank 0."""
        return self._counts.values()

    def report_end(self, run_dir: Path, done: int) -> None:
        """Say that there were too many in a row, and what to do."""
        log.error(
            "stopped: %d steps in a row with a loss or gradient that is not finite; no parameter has moved since step %d",
            *(self.in_a_row, done - self.in_a_row),
        )
        log.error(
            "`rb replay %s %d` says which sample and which term it was, and --resume %s goes on after them",
            *(run_dir, done, run_dir),
        )
