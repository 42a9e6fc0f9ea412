"""One variant with one seed: its trainings, its predictions, its scores, by the project's own commands as processes.

What is finished is not done again, and an unfinished training goes on from its checkpoint; both are read off the run folders, nothing else
is remembered. Several may run side by side in threads of one process.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rb.ablate.plan import Plan, Question, Variant
from rb.checkpoints import checkpoint
from rb.core.child_commands import Processes
from rb.core.config import RunConfig
from rb.core.files import file_sha256
from rb.core.metrics import of_ablations
from rb.core.run_file import digest, load_run
from rb.core.run_layout import RUN_CONFIG, RUN_PREDICTIONS
from rb.core.run_paths import resolve_paths
from rb.core.strict_json import read
from rb.data.predictions import predictions_meta_path
from rb.evaluation.scoring import metrics_path

SHUFFLED = "_shuffled"  # end of the name of predictions with shuffled boxes


def train_and_ask(plan: Plan, variant: Variant, seed: int, out: Path, ranks: int, processes: Processes) -> float:
    """Everything of one variant and seed that is not there yet. Returns the seconds that it took.

    Raises:
        ValueError: a run folder in ``out`` holds a run of another configuration.
        FailedError, StoppedError: see ``Processes.run``.
    """
    started = time.monotonic()
    for stage in range(len(variant.stages)):
        _train(plan, variant, seed, stage, out, ranks, processes)
    name = plan.training_name(variant, seed, len(variant.stages) - 1)
    run_dir = out / "runs" / name
    asked = {
        _ask(plan, question, modality, shuffled, run_dir, processes): question
        for modality, question in plan.questions.items()
        for shuffled in ((False, True) if question.shuffle_boxes else (False,))
    }
    _score(asked, run_dir, processes)
    return time.monotonic() - started


def _train(plan: Plan, variant: Variant, seed: int, stage: int, out: Path, ranks: int, processes: Processes) -> None:
    overrides, config = plan.training(variant, seed, stage, out)
    run_dir = out / "runs" / config.name
    begun = (run_dir / RUN_CONFIG).is_file()
    if begun:
        _check_same(run_dir, resolve_paths(config, plan.run.parent, init_from=False))
        found = checkpoint.find(run_dir)
        if found is not None and found.step == config.train.max_steps:
            return
    what = ["--resume", str(run_dir)] if begun else ["--run", str(plan.run), *overrides]
    # One rank needs no launcher, which takes some seconds to start.
    entry = [sys.executable, "-m", "rb.train", *(["--ranks", str(ranks)] if ranks > 1 else [])]
    processes.run(config.name, [*entry, *what])


def _check_same(run_dir: Path, config: RunConfig) -> None:
    there = resolve_paths(load_run(run_dir / RUN_CONFIG), run_dir, init_from=False)
    if digest(there) != digest(config):
        raise ValueError(
            f"{run_dir}: holds a run of another configuration than the plan's; give a new --out, or remove that folder"
        )


def _ask(plan: Plan, question: Question, modality: str, shuffled: bool, run_dir: Path, processes: Processes) -> Path:
    """The predictions file of one question, made where it is missing."""
    predictions = run_dir / RUN_PREDICTIONS / f"{modality}{SHUFFLED if shuffled else ''}.jsonl"
    if not _predicted(predictions, question, run_dir):
        command = [
            *processes.rb,
            "predict",
            "--checkpoint",
            str(run_dir),
            "--data",
            question.data,
            "--modality",
            modality,
        ]
        command += ["--out", str(predictions), "--threads", "1"]
        command += ["--limit", str(question.limit)] if question.limit is not None else []
        command += ["--shuffle-boxes"] if shuffled else []
        processes.run(run_dir.name, [*command, *plan.decode])
    return predictions


def _score(asked: Mapping[Path, Question], run_dir: Path, processes: Processes) -> None:
    """Scores of the predictions that have none yet: one process for those with a truth, one for those without."""
    todo = [predictions for predictions, question in asked.items() if not _scored(predictions, question)]
    for judged in (True, False):
        files = [predictions for predictions in todo if (asked[predictions].truth is not None) == judged]
        truths = dict.fromkeys(str(asked[predictions].truth) for predictions in files) if judged else {}
        options = [
            "--no-java",
            "--no-mlflow",
            "--metrics",
            *(m.name for m in of_ablations()),
            *(o for t in truths for o in ("--truth", t)),
        ]
        if files:
            processes.run(run_dir.name, [*processes.rb, "score", *map(str, files), *options])


def _predicted(predictions: Path, question: Question, run_dir: Path) -> bool:
    """Whether the predictions are there, by the run's newest checkpoint and of as many examples as the plan says."""
    meta_path = predictions_meta_path(predictions)
    if not predictions.is_file() or not meta_path.is_file():
        return False
    meta, found = read(meta_path), checkpoint.find(run_dir)
    made_by = meta.get("checkpoint") if isinstance(meta, dict) else None
    step = made_by.get("step") if isinstance(made_by, dict) else None
    return found is not None and step == found.step and meta.get("limit") == question.limit


def _scored(predictions: Path, question: Question) -> bool:
    scores = metrics_path(predictions)
    if not scores.is_file():
        return False
    found = read(scores)
    same = isinstance(found, dict) and found.get("predictions_sha256") == file_sha256(predictions)
    return same and (question.truth is None or "truth" in found)
