"""The chain that a user runs, by its real commands: raw files, shards, training on 2 ranks, captions, scores, MLflow, table, page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from mlflow.tracking import MlflowClient

from eval import predict as predict_command
from eval import report as report_command
from eval import score as score_command
from eval import table as table_command
from rb.cli import main as rb
from rb.core.config import FoundationConfig
from rb.core.run_file import to_tree
from rb.data.predictions import read_predictions
from rb.tracking import metric_points
from tests.support import tiny
from tests.support.processes import finish, start_ranks

ROOT = Path(__file__).resolve().parents[1]
STEPS, LOG_EVERY = 6, 3
DATA = {
    "image": "coco_test",
    "image_region": "refcoco_test",
    "point_cloud": "objaverse_test",
    "point_cloud_region": "scanrefer_test",
}
SPLITS = {"coco": ("test",), **dict.fromkeys(("refcoco", "objaverse", "scanrefer"), ("train", "test"))}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw files and shards, by ``rb toy`` and ``rb prepare``."""
    folder = tmp_path_factory.mktemp("world")
    assert rb(["toy", "raw", "--out", f"{folder}/raw", "--scale", "small"]) == 0
    for name, splits in SPLITS.items():
        for split in splits:
            out = f"{folder}/{name}_{split}"
            assert rb(["prepare", name, "--raw", f"{folder}/raw/{name}", "--out", out, "--split", split]) == 0
    return folder


@pytest.fixture(scope="module")
def run_file(world: Path, foundation: FoundationConfig) -> Path:
    tree = {
        "name": "chain",
        "output_dir": f"{world}/runs",
        "model": to_tree(tiny.model_config(foundation, train_modalities=tuple(DATA)[1:])),
        "data": {
            "train": {
                "image_region": [{"manifest": f"{world}/refcoco_train"}],
                "point_cloud": [{"manifest": f"{world}/objaverse_train", "repeat": 3}],
                "point_cloud_region": [{"manifest": f"{world}/scanrefer_train"}],
            },
            "num_workers": 1,
        },
        "train": {
            "global_batch_size": 8,
            "micro_batch_size": 2,
            "max_steps": STEPS,
            "schedule": "round_robin",
            "log_every": LOG_EVERY,
            "checkpoint_every": 4,
            "ds_config": "ds_configs/zero2_cpu.json",
            "num_threads": 1,
        },
        "tracking": {"experiment": "chain"},
        "decode": {"num_beams": 3, "max_new_tokens": 6},
    }
    path = world / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def run_dir(world: Path, run_file: Path) -> Path:
    """One training run on two ranks, ZeRO-2, MLflow's sqlite store; tests/test_wheel.py has one to the end under the real launcher."""
    finish(*start_ranks(2, "rb.train", "--run", run_file, MLFLOW_TRACKING_URI=""))
    return world / "runs" / "chain"


@pytest.fixture(scope="module")
def predicted(world: Path, run_file: Path, run_dir: Path) -> Callable[[str, bool], Path]:
    """(modality, trained?) -> predictions file, made once by ``eval.predict``."""
    made: dict[tuple[str, bool], Path] = {}

    def make(modality: str, trained: bool) -> Path:
        if (modality, trained) not in made:
            out = run_dir / "predictions" / f"{'' if trained else 'base_'}{modality}.jsonl"
            model = ["--checkpoint", str(run_dir)] if trained else ["--run", str(run_file)]
            arguments = [*model, "--data", f"{world}/{DATA[modality]}", "--modality", modality, "--out", str(out)]
            assert predict_command.main(arguments) == 0
            made[modality, trained] = out
        return made[modality, trained]

    return make


@pytest.mark.slow
@pytest.mark.dist
def test_image_captions_are_the_same_before_and_after_training(predicted: Callable[[str, bool], Path]) -> None:
    (before, _), (after, meta) = (read_predictions(predicted("image", trained)) for trained in (False, True))
    assert before == after
    assert len(after) == 16
    assert meta["checkpoint"]["step"] == STEPS
    base, trained = (read_predictions(predicted("image_region", t))[0] for t in (False, True))
    assert [row.id for row in base] == [row.id for row in trained]
    assert base != trained  # what trains does change


@pytest.mark.dist
def test_prediction_sharded_over_ranks_is_the_same_file(
    world: Path, run_dir: Path, predicted: Callable[[str, bool], Path], tmp_path: Path
) -> None:
    alone = predicted("image_region", True)
    out = tmp_path / "sharded.jsonl"
    arguments = [
        "--checkpoint",
        str(run_dir),
        "--data",
        f"{world}/refcoco_test",
        "--modality",
        "image_region",
        "--out",
        str(out),
    ]
    command = [sys.executable, "-m", "rb.cli", "predict", "--ranks", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert read_predictions(out)[0] == read_predictions(alone)[0]


@pytest.mark.dist
def test_mlflow_holds_what_happened(run_dir: Path, predicted: Callable[[str, bool], Path]) -> None:
    assert score_command.main([str(predicted("image_region", True)), "--no-java"]) == 0
    client = MlflowClient(f"sqlite:///{run_dir.parent}/mlflow.db")
    identity = json.loads((run_dir / "mlflow.json").read_text())
    run = client.get_run(identity["run_id"])
    assert run.info.status == "FINISHED"

    points = metric_points(run_dir / "journal.jsonl")
    every = ("itc", "itm", "itg", "llm")
    terms = {"image_region": (*every, "reg"), "point_cloud": every, "point_cloud_region": (*every, "reg")}
    logged = list(range(LOG_EVERY, STEPS + 1, LOG_EVERY))
    names = [f"train/{m}/loss_{t}" for m, ts in terms.items() for t in (*ts, "total")]
    for name in [*names, "train/lr", "train/grad_norm", "train/samples_per_s"]:
        history = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
        assert history == [(point.step, point.value) for point in points[name]], name
        # Strict turns and a window of three steps: every modality is in every window.
        assert [step for step, _ in history] == logged, name

    scores = json.loads((run_dir / "metrics" / "image_region.json").read_text())["scores"]
    history = client.get_metric_history(run.info.run_id, "eval/refcoco_google/test/CIDEr")
    assert [(point.step, point.value) for point in history] == [(STEPS, scores["CIDEr"])]

    assert run.data.params["train.global_batch_size"] == "8"
    assert run.data.params["model.lora.r"] == "8"
    manifest = json.loads((run_dir.parent.parent / "refcoco_train" / "manifest.json").read_text())
    digests = {i.dataset.name: i.dataset.digest for i in run.inputs.dataset_inputs}
    assert any(manifest["name"] in name for name in digests), digests
    assert all(digests.values())
    assert {"config.yaml", "environment.json", "weights.json"} <= {
        a.path for a in client.list_artifacts(run.info.run_id)
    }
    assert "git_commit" in run.data.tags
    assert any("trainable" in key for key in {**run.data.tags, **run.data.params})


@pytest.mark.dist
def test_table_and_page(
    run_dir: Path, predicted: Callable[[str, bool], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [("image", True), ("image", False), ("image_region", False), ("point_cloud", True)]
    for modality, trained in [*cells, ("image_region", True), ("point_cloud_region", True)]:
        truth = f"{run_dir.parent.parent}/raw/{DATA[modality].removesuffix('_test')}/truth.json"
        arguments = [str(predicted(modality, trained)), "--no-java", "--no-mlflow", "--truth", truth]
        assert score_command.main(arguments) == 0
    capsys.readouterr()
    assert table_command.main([str(run_dir)]) == 0
    table = capsys.readouterr().out
    heading = [part.strip() for part in table.splitlines()[0].split("|")]
    assert heading[1:] == [name.replace("_", " ") for name in DATA]  # Table 1 in full shape
    for words in ("base", "RegionBLIP", "CIDEr", "SPICE", "true", "right object"):
        assert words in table
    assert report_command.main([str(run_dir)]) == 0
    page = (run_dir / "report.html").read_text()
    assert "loss_itc" in page or "itc" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_prediction_refuses_what_cannot_be(
    world: Path, run_file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    common = ["--data", f"{world}/refcoco_test", "--out", str(tmp_path / "p.jsonl")]
    cases = {
        "no such run folder": ["--checkpoint", str(tmp_path / "none"), "--modality", "image_region", *common],
        "cannot serve point_cloud": ["--run", str(run_file), "--modality", "point_cloud", *common],
        "--crop-boxes": ["--run", str(run_file), "--modality", "image", "--crop-boxes", *common],
        "manifest": [
            "--run",
            str(run_file),
            "--modality",
            "image",
            "--data",
            str(tmp_path),
            "--out",
            str(tmp_path / "p.jsonl"),
        ],
    }
    for words, arguments in cases.items():
        assert predict_command.main(arguments) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "p.jsonl").exists()
