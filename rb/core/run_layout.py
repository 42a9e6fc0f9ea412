"""The names in a run folder, each in this one place. What the files hold is described in docs/formats.md."""

from __future__ import annotations

import os
from pathlib import Path

# Written by training.
RUN_CONFIG = "config.yaml"
RUN_ENVIRONMENT = "environment.json"
RUN_WEIGHTS = "weights.json"
RUN_TEXT_HEAD = "text_head.safetensors"  # of an imported run; model.foundation.text_head names it
RUN_LOG = "log.txt"
RUN_VALIDATION = "validation"
TRAINING_LOCK = "training.lock"
RUN_END = "end.json"
RUN_HANGS = "hangs"  # written by the supervisor of a run

# Checkpoints: RUN_DIR/checkpoints/step_0001200/, and two files beside them that name one.
CHECKPOINTS = "checkpoints"
LATEST = "latest"
BEST = "best"
STEP_PREFIX = "step_"

# Tracking.
RUN_JOURNAL = "journal.jsonl"
RUN_MLFLOW = "mlflow.json"
RUN_EVALUATIONS = "evaluations"
TRACKING_LOCK = "tracking.lock"

# Written by prediction, scoring and the report.
RUN_PREDICTIONS = "predictions"
RUN_METRICS = "metrics"
RUN_REPORT = "report.html"


def earlier_config(number: int) -> str:
    """Name of ``config.yaml`` as it was before extension ``number``, counted from 1 (``rb extend``)."""
    return f"config_before_extension_{number}.yaml"


def step_name(step: int) -> str:
    """Name of the checkpoint folder of a step: ``step_0001200``."""
    return f"{STEP_PREFIX}{step:07d}"


def run_of_checkpoint(checkpoint: Path) -> Path:
    """``RUN_DIR/checkpoints/step_0001200`` -> ``RUN_DIR``, absolute."""
    return Path(os.path.abspath(checkpoint)).parents[1]  # noqa: PTH100 (resolve would follow a link to another disk)
