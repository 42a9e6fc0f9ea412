"""MLflow's own page that compares runs, opened on two trainings: five losses, CIDEr, SPICE and parameters are there to compare."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rb.core.metric_names import TRAIN, loss_name
from rb.tracking import ScoredSet, Tracker, log_evaluation
from rb.tracking.identity import run_identity
from tests.support.browser import browser
from tests.support.mlflow_runs import client_of
from tests.support.mlflow_server import mlflow_server
from tests.support.trials import Figures

LOSSES = [loss_name(TRAIN, "image_region", term) for term in ("itc", "itm", "itg", "llm", "reg")]
SCORES = ("eval/refcoco/val/CIDEr", "eval/refcoco/val/SPICE")
PARAMS = {"optim.lr": 0.0001, "model.lora.rank": 8}
WAIT_S = 90


def test_the_compare_page_has_what_two_trainings_differ_in(tmp_path: Path, figures: Figures, monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for k, name in enumerate(("first", "second")):
        with Tracker(tmp_path / name, experiment="exp", interval_s=0.1) as tracker:
            tracker.params(PARAMS | {"optim.lr": 0.0001 * (1 + k)})
            for step in (1, 2):
                tracker.metrics(step, dict.fromkeys(LOSSES, 3.0 / step + k))
        data = ScoredSet("refcoco", "val", "ab" * 32)
        scores = {"CIDEr": 0.5 + k / 10, "SPICE": 0.2 + k / 10}
        log_evaluation(scores, name="val", data=data, run_dir=tmp_path / name, step=2, checkpoint="step-2")
    runs = [run_identity(tmp_path / name)["run_id"] for name in ("first", "second")]
    experiment = client_of(tmp_path).get_experiment_by_name("exp").experiment_id
    with mlflow_server(tmp_path / "mlflow.db") as server, browser() as driver:
        query = f"runs={json.dumps(runs)}&experiments={json.dumps([experiment])}"
        driver.get(f"{server.uri}/#/compare-runs?{query}")
        start = time.monotonic()
        end = start + WAIT_S
        wanted = {*LOSSES, *SCORES, *PARAMS, "first", "second"}
        while wanted - (shown := {word for word in wanted if word in driver.page_source}):
            assert time.monotonic() < end, f"not on the page: {sorted(wanted - shown)}"
            time.sleep(0.5)
        driver.save_screenshot(str(tmp_path / "compare.png"))
        driver.get(f"{server.uri}/#/experiments/{experiment}/models")
        models = {f"{name}-step-2" for name in ("first", "second")}
        while models - {name for name in models if name in driver.page_source}:
            assert time.monotonic() < end, "the checkpoints are not on MLflow's page of models"
            time.sleep(0.5)
        driver.save_screenshot(str(tmp_path / "models.png"))
    figures |= {"seconds until both pages show everything": round(time.monotonic() - start)}
