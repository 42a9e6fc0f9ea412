"""Validation while training: it changes nothing, survives what a run survives, and its scores are those of prediction and scoring."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from eval import predict as predict_command
from rb.checkpoints import checkpoint
from rb.core.config import FoundationConfig
from rb.core.run_file import to_tree
from rb.data.predictions import read_predictions
from rb.data.shard_writer import ShardWriter
from rb.evaluation.simple_cider import simple_cider
from rb.tracking import metric_points
from rb.tracking.identity import run_identity
from tests.support import small_data, tiny
from tests.support.page_rules import check_page
from tests.support.processes import finish, start_ranks

STEPS, CLOUDS = 8, 7
REGION_TERMS = ("itc", "itm", "itg", "llm", "reg", "total")
NAMES = {f"val/image_region/loss_{term}" for term in REGION_TERMS} | {"val/image_region/CIDEr", "val/point_cloud/CIDEr"}
NAMES |= {f"val/point_cloud/loss_{term}" for term in REGION_TERMS if term != "reg"}


def write_clouds(folder: Path, numbers: range) -> None:
    """Held-out clouds that share out all words among them, so that whatever the tiny model says hits some, and CIDEr is not 0."""
    with ShardWriter(folder, "small", "point_cloud", "val", max_shard_records=3) as writer:
        for i in numbers:
            record = small_data.record("point_cloud", i, "val")
            writer.write(
                dataclasses.replace(record, captions=tiny.WORDS[i::CLOUDS]), *small_data.media("point_cloud", i)
            )


@pytest.fixture(scope="module")
def runs(foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of three runs on two ranks: "plain", "validated", and "broken" off in a validation, resumed, stopped, resumed."""
    folder = tmp_path_factory.mktemp("validation")
    for name, modality, number, first in (
        ("regions", "image_region", 8, 0),
        ("clouds", "point_cloud", 5, 0),
        ("held_regions", "image_region", 5, 20),
    ):
        small_data.write_set(folder / name, modality, number, first=first)
    write_clouds(folder / "held_clouds", range(3))
    write_clouds(folder / "more_clouds", range(3, CLOUDS))

    def sources(*names: str) -> list[dict[str, str]]:
        return [{"manifest": str(folder / name)} for name in names]

    tree = {
        "output_dir": str(folder / "runs"),
        "model": to_tree(tiny.model_config(foundation)),
        "data": {
            "train": {"image_region": sources("regions"), "point_cloud": sources("clouds")},
            "val": {"image_region": sources("held_regions"), "point_cloud": sources("held_clouds", "more_clouds")},
            "num_workers": 0,
        },
        "optim": {"lr": 1e-3, "warmup_steps": 2},
        "train": {
            "global_batch_size": 4,
            "micro_batch_size": 2,
            "max_steps": STEPS,
            "log_every": 2,
            "checkpoint_every": 2,
            "keep_checkpoints": 1,
            "ds_config": "ds_configs/zero2_cpu.json",
            "num_threads": 1,
            "timeout_s": 180,
        },
        "validation": {"num_loss_batches": 2, "num_examples": 50, "keep_best": "val/point_cloud/loss_itc"},
        "decode": {"num_beams": 2, "max_new_tokens": 6},
        "tracking": {"experiment": "held out"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    worker = "tests.support.validation_worker"
    finish(*start_ranks(2, worker, folder / "run.yaml", folder / "held_regions"), timeout=360)
    return folder / "runs"


@pytest.mark.slow
@pytest.mark.dist
def test_nothing_about_the_training_changes(runs: Path) -> None:
    states = [checkpoint.load_state(checkpoint.require(runs / name)) for name in ("plain", "validated", "broken")]
    for state in states[1:]:
        for kind in checkpoint.KINDS:
            assert state.tensors[kind].keys() == states[0].tensors[kind].keys()
            for name, value in states[0].tensors[kind].items():
                assert torch.equal(value, state.tensors[kind][name]), f"{kind} {name}"
    plain, validated = (metric_points(runs / name / "journal.jsonl") for name in ("plain", "validated"))
    assert {name for name in validated if name.startswith("val/")} == NAMES == validated.keys() - plain.keys()
    for name, points in plain.items():
        if not name.endswith("samples_per_s"):
            assert [(p.step, p.value) for p in points] == [(p.step, p.value) for p in validated[name]], name


@pytest.mark.dist
def test_a_run_that_ended_in_a_validation_has_the_same_scores(runs: Path) -> None:
    validated, broken = (metric_points(runs / name / "journal.jsonl") for name in ("validated", "broken"))
    for name in NAMES:
        values = {p.step: p.value for p in validated[name]}
        assert list(values) == [3, 6, 8]
        assert {p.step: p.value for p in broken[name]} == values, name
        assert name.endswith("CIDEr") or len(set(values.values())) == 3, (
            f"{name} does not follow the training: {values}"
        )


@pytest.mark.dist
def test_the_best_checkpoint_stays_beside_the_newest(runs: Path) -> None:
    for run in ("validated", "broken"):
        losses = {p.step: p.value for p in metric_points(runs / run / "journal.jsonl")["val/point_cloud/loss_itc"]}
        best = min(losses, key=lambda step: losses[step])
        folder = runs / run / "checkpoints"
        assert checkpoint.require(folder / "best").step == best
        assert sorted(p.name for p in folder.glob("step_*")) == [f"step_{step:07d}" for step in sorted({best, STEPS})]
        record = checkpoint.require(runs / run).meta["best"]
        assert record == {"name": "val/point_cloud/loss_itc", "value": losses[best], "step": best}
    assert not (runs / "plain" / "checkpoints" / "best").exists()


@pytest.mark.dist
def test_its_cider_is_that_of_the_captions_of_prediction(runs: Path, tmp_path: Path) -> None:
    rows = []
    for name in ("held_clouds", "more_clouds"):
        out = tmp_path / f"{name}.jsonl"
        arguments = ["--checkpoint", str(runs / "validated"), "--data", str(runs.parent / name), "--out", str(out)]
        assert predict_command.main([*arguments, "--modality", "point_cloud", "--batch-size", "2"]) == 0
        rows += read_predictions(out)[0]
    assert len(rows) == CLOUDS
    found = metric_points(runs / "validated" / "journal.jsonl")["val/point_cloud/CIDEr"][-1]
    assert found.step == STEPS
    assert found.value > 0
    assert found.value == pytest.approx(simple_cider([r.prediction for r in rows], [r.references for r in rows]))


@pytest.mark.dist
def test_samples_and_manifests_are_in_mlflow(runs: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    run = client.get_run(run_identity(runs / "validated")["run_id"])
    inputs = {
        (
            Path(json.loads(d.dataset.source)["uri"]) if d.dataset.source.startswith("{") else Path(d.dataset.source)
        ).parent.name: {tag.key: tag.value for tag in d.tags}["mlflow.data.context"]
        for d in run.inputs.dataset_inputs
    }
    assert inputs == dict.fromkeys(("regions", "clouds"), "training") | dict.fromkeys(
        ("held_regions", "held_clouds", "more_clouds"), "validation"
    )
    pages = [file.path for file in client.list_artifacts(run.info.run_id, "validation")]
    assert pages == [f"validation/step_{step:07d}.html" for step in (3, 6, 8)]
    texts = []
    for page in pages:
        texts.append(Path(client.download_artifacts(run.info.run_id, page)).read_text(encoding="utf-8"))
        assert texts[-1] == (runs / "validated" / page).read_text(encoding="utf-8")
        assert "<script" not in texts[-1]
    for text in texts:
        # Of 7 held-out regions and 7 clouds, the same four each: image with box, cloud as it stands.
        assert text.count("<article") == 8
        assert text.count('<rect class="box over"') == text.count('src="data:image/png;base64,') == 4
        assert ids_of(text) == ids_of(texts[0])
    broken = runs / "broken" / "validation"
    assert [
        (broken / Path(page).name).read_text(encoding="utf-8").replace("broken", "validated") for page in pages
    ] == texts


@pytest.mark.dist
def test_the_samples_are_the_captions_of_prediction(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "regions.jsonl"
    arguments = [
        "--checkpoint",
        str(runs / "validated"),
        "--data",
        str(runs.parent / "held_regions"),
        "--out",
        str(out),
    ]
    assert predict_command.main([*arguments, "--modality", "image_region", "--batch-size", "2"]) == 0
    predicted = {row.id: row for row in read_predictions(out)[0]}
    text = (runs / "validated" / "validation" / f"step_{STEPS:07d}.html").read_text(encoding="utf-8")
    check_page(text)
    shown = [card for card in text.split("<article")[1:] if "image_region/" in card]
    assert len(shown) == 4
    for card in shown:
        row = predicted[next(iter(ids_of(card)))]
        assert f'<div class="prediction">{html.escape(row.prediction)}</div>' in card
        assert all(f"<li>{html.escape(reference)}</li>" in card for reference in row.references)


def ids_of(text: str) -> list[str]:
    return re.findall(r'<div class="id mono">(.*?)</div>', text)
