"""What goes wrong between a run's journal and MLflow."""

from __future__ import annotations


class TrackingError(ValueError):
    """MLflow cannot be reached, or refuses what it is sent; the journal still holds everything."""
