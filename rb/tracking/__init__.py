"""Tracking: a journal in the run folder first, MLflow as its copy. The rest of the project uses the names below."""

from rb.tracking.evaluations import ScoredSet, log_evaluation
from rb.tracking.journal import Journal, metric_points
from rb.tracking.tracker import Tracker

__all__ = ["Journal", "ScoredSet", "Tracker", "log_evaluation", "metric_points"]
