"""What goes wrong between a run's journal and MLflow."""

from __future__ import annotations


class TrackingError(ValueError):
    """MLflow cannot be reached, or refuses what it is sent; the journal still holds everything."""


def reason(error: BaseException) -> str:
    """The first cause of an error, in one line: libraries wrap "database or disk is full" in several lines about themselves."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [repr(error)])[0][:300]
