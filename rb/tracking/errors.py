"""What goes wrong between a run's journal and MLflow."""

from __future__ import annotations

import logging
from pathlib import Path


class TrackingError(ValueError):
    """MLflow cannot be reached, or refuses what it is sent; the journal still holds everything."""


def reason(error: BaseException) -> str:
    """The first cause of an error, in one line: libraries wrap "database or disk is full" in several lines about themselves."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [repr(error)])[0][:300]


def say_behind(log: logging.Logger, uri: str, run_dir: Path, why: str = "") -> None:
    """Say that MLflow does not have all of a run that has ended, and how to send the rest."""
    because = f" ({why})" if why else ""
    log.warning(
        "MLflow (%s) lacks the last part of %s%s; nothing is lost, send it with: rb track sync %s",
        uri,
        run_dir,
        because,
        run_dir,
    )
