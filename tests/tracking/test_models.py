"""Checkpoints as MLflow's logged models: MLflow's own search ranks them by a score, and ``rb track best`` prints them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rb.cli import main as rb
from rb.tracking import ScoredSet, Tracker, log_evaluation
from rb.tracking.commands import sync
from rb.tracking.identity import run_identity
from tests.support.mlflow_runs import client_of
from tests.support.remedies import covers, helps, remedy

DATA = ScoredSet("refcoco+", "val", "sha256:" + "ab" * 32, "predictions.jsonl")
CIDER = "eval/refcocoplus/val/CIDEr"
SCORES = {("one", 100): 0.5, ("one", 200): 0.9, ("two", 100): 0.7}


def scored(runs: Path, run: str, step: int, cider: float, **changes: object) -> None:
    log_evaluation(
        {"CIDEr": cider, "SPICE": cider / 10},
        **{
            "name": f"val-{step}",
            "data": DATA,
            "run_dir": runs / run,
            "step": step,
            "checkpoint": f"step-{step}",
            **changes,
        },
    )


@pytest.fixture
def experiment(runs: Path) -> Path:
    """Two trainings, three scored checkpoints, and the base model's score."""
    for run in ("one", "two"):
        with Tracker(runs / run, experiment="exp", interval_s=0.1) as tracker:
            tracker.metrics(100, {"train/lr": 0.1})
    for (run, step), cider in SCORES.items():
        scored(runs, run, step, cider)
    scored(runs, "one", 0, 0.95, name="base", checkpoint=None)
    return runs


def found_by_mlflow(runs: Path) -> list[tuple[str, str, float]]:
    client = client_of(runs)
    number = client.get_experiment_by_name("exp").experiment_id
    order = [{"field_name": f"metrics.{CIDER}", "ascending": False, "dataset_name": DATA.dataset}]
    models = client.search_logged_models([number], order_by=order)
    last = [max((x for x in m.metrics if x.key == CIDER), key=lambda x: x.timestamp).value for m in models]
    return [(m.tags["training_run"], m.tags["checkpoint_step"], v) for m, v in zip(models, last, strict=True)]


def test_mlflow_ranks_checkpoints_by_a_score(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = [("one", "200", 0.9), ("two", "100", 0.7), ("one", "100", 0.5)]
    assert found_by_mlflow(experiment) == best
    client = client_of(experiment)
    number = client.get_experiment_by_name("exp").experiment_id
    (model,) = client.search_logged_models(
        [number], f"metrics.`{CIDER}` > 0.8", datasets=[{"dataset_name": DATA.dataset}]
    )
    assert model.source_run_id == run_identity(experiment / "one")["run_id"]
    assert model.tags["mlflow.model.isExternal"] == "true"
    assert str(model.status) == "READY"
    measured = {m.key: m for m in model.metrics}
    evaluation = run_identity(experiment / "one" / "evaluations" / "val-200")["run_id"]
    assert (measured[CIDER].run_id, measured[CIDER].dataset_digest) == (evaluation, ("ab" * 32)[:36])
    assert client.get_run(evaluation).data.tags["mlflow.parentRunId"] == run_identity(experiment / "one")["run_id"]
    assert rb(["track", "best", "--metric", "CIDEr", "--experiment", "exp", "--store", str(experiment)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == f"{CIDER} on the set abababababab"
    assert [line.split() for line in lines] == [
        [run, "step", step, f"step-{step}", f"{v:.4f}"] for run, step, v in best
    ]
    words = [
        "--metric",
        "eval/refcoco+/val/SPICE",
        "--experiment",
        "exp",
        "--store",
        str(experiment),
        "--limit",
        "1",
        "--json",
    ]
    assert rb(["track", "best", *words]) == 0
    ((row,),) = json.loads(capsys.readouterr().out)
    assert (row["run"], row["step"], row["value"]) == ("one", 200, pytest.approx(0.09))


def test_scores_computed_again_and_copies_sent_again_make_no_second_model(experiment: Path) -> None:
    scored(experiment, "two", 100, 0.95)
    (experiment / "mlflow.db").unlink()
    for run in ("one", "two", "two"):
        sync(experiment / run)
    assert found_by_mlflow(experiment)[0] == ("two", "100", 0.95)
    assert len(found_by_mlflow(experiment)) == 3


COMMANDS = {
    "no mlflow.db in it; name the folder of the runs by --store": ["--metric", "CIDEr", "--experiment", "exp"],
    "has no experiment {}; name one by --experiment": ["--metric", "CIDEr", "--store", "RUNS"],
}


@pytest.mark.parametrize("message", covers(COMMANDS))
def test_what_is_not_there(message: str, experiment: Path, tmp_path_factory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    words = [str(experiment) if word == "RUNS" else word for word in COMMANDS[message]]
    more = ["--store", str(experiment)] if "--store" in message else ["--experiment", "exp"]
    helps(message, lambda: rb(["track", "best", *words]), lambda _: words.extend(more))


@remedy("none: score checkpoints with rb score")
def test_no_scores(runs: Path):
    with Tracker(runs / "one", experiment="exp", interval_s=0.1) as tracker:
        tracker.metrics(100, {"train/lr": 0.1})
    words = ["track", "best", "--metric", "CIDEr", "--experiment", "exp", "--store", str(runs)]
    return lambda: rb(words), lambda _: scored(runs, "one", 100, 0.5)
