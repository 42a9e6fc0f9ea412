"""A validation as the loop makes it: its values to the journal, its page, and what becomes of one that was given up for a stop. All ranks."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from rb.core.patient import attempt
from rb.core.run_layout import RUN_VALIDATION, step_name
from rb.core.stopping import StopRequest
from rb.tracking import Tracker
from rb.training.agree import agreed, on_main
from rb.training.saving import Saver
from rb.training.validate import Validation

log = logging.getLogger(__name__)


def validate(validation: Validation, run_dir: Path, done: int, tracker: Tracker, stop: StopRequest) -> bool:
    """Validate after so many steps; whether this step is the best so far. ``validation.owed`` where it was given up for a stop. Collective."""
    found = validation.run(done, lambda: any(agreed(bool(stop.reason))))
    if found is None:
        log.info("step %d: validation is given up for the stop; it comes first when the run goes on", done)
        return False
    scores, best = found
    tracker.metrics(done, scores)
    if validation.settings.num_examples:
        write = partial(validation.write_samples, run_dir, done, scores)
        page = on_main(partial(attempt, run_dir / RUN_VALIDATION / step_name(done), write))
        if page is not None:
            tracker.artifact(page)
    return best


def make_up(
    validation: Validation, saver: Saver, run_dir: Path, done: int, tracker: Tracker, stop: StopRequest
) -> None:
    """Make the validation that is owed of the step that the run continues from, and note it in that step's checkpoint. Collective."""
    best = validate(validation, run_dir, done, tracker, stop)
    if not validation.owed:
        saver.amend(done, best)
