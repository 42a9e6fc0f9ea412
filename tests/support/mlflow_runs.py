"""MLflow's side of a run folder, read through MLflow's own client."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rb.tracking.identity import run_identity


def client_of(root: Path):
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{root / 'mlflow.db'}")


def run_of(run_dir: Path):
    return client_of(run_dir.parent).get_run(run_identity(run_dir)["run_id"])


def all_points(client, run_id: str) -> Counter:
    """(name, step) -> how many points MLflow holds."""
    names = client.get_run(run_id).data.metrics
    return Counter((name, point.step) for name in names for point in client.get_metric_history(run_id, name))
