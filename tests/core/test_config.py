"""Run files: defaults, overrides, round trip, and errors that name the key and the remedy."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from rb.core.config import RunConfig, TrainConfig
from rb.core.loss_terms import LOSS_TERMS
from rb.core.run_file import digest, dump_run, load_run

ROOT = Path(__file__).parents[2]


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_round_trip_and_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "name: a\noptim: {lr: 1e-3}\nmodel: {train_modalities: [point_cloud, image_region]}\n")
    config = load_run(path, ["train.max_steps=5", "optim.betas=[0.9,0.98]", "model.loss_weights.reg=0"])
    assert config.optim.lr == 1e-3
    assert config.optim.betas == (0.9, 0.98)
    assert config.train.max_steps == 5
    assert config.model.train_modalities == ("image_region", "point_cloud")  # the table's order, not the file's
    assert config.model.loss_weights == {name: term.default_weight for name, term in LOSS_TERMS.items()} | {"reg": 0.0}
    path.write_text(dump_run(config))
    assert load_run(path) == config
    assert digest(load_run(path)) == digest(config) != digest(RunConfig())


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.learning_rate=1", ["optim.learning_rate", "known keys", "lr"]),
        ("train.global_batch_sise=1", ["train.global_batch_sise", "global_batch_size"]),
        ("trian.max_steps=1", ["trian", "'train'"]),
        ("train.schedule=random", ["train.schedule", "random", "weighted_round_robin"]),
        ("model.lora.r=eight", ["model.lora.r", "int", "eight"]),
        ("model.train_modalities=[video]", ["video", "image_region"]),
        ("model.loss_weights.contrastive=1", ["contrastive", "itc"]),
        ("data.train.image=[{manifest: x}]", ["data.train.image", "train_modalities"]),
        ("data.train.image_region=[]", ["data.train.image_region", "no manifest"]),
        ("data.val.point_cloud=[]", ["data.val.point_cloud", "no manifest"]),
        ("data.val.image=[{manifest: x}]", ["data.val.image", "train_modalities"]),
        ("validation.every=5", ["validation.every", "data.val"]),
        ("optim.min_lr=1", ["optim.min_lr", "optim.lr"]),
        ("decode.max_new_tokens=0", ["decode.max_new_tokens"]),
        ("data.num_workers=${NO_SUCH_VARIABLE}", ["data.num_workers"]),
        ("output_dir=${NO_SUCH_VARIABLE}", ["output_dir", "NO_SUCH_VARIABLE"]),
        ("name=a/b", ["name", "a/b"]),
        ('name="a\\nb"', ["name", "plain folder name"]),
        ("nonsense", ["nonsense", "section.key=value"]),
    ],
)
def test_errors_name_key_value_and_remedy(tmp_path: Path, override: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        load_run(write(tmp_path, "name: a\n"), [override])
    for word in words:
        assert word in str(error.value)


def test_missing_file_and_wrong_yaml(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="launch/runs"):
        load_run(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_run(write(tmp_path, "a: [1\n"))
    with pytest.raises(ValueError, match="mapping"):
        load_run(write(tmp_path, "- 1\n"))


def test_environment_in_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "name: a\noutput_dir: ${RB_OUT}/x\nmodel: {prompt: '${RB_PROMPT:-a photo of}'}\n")
    monkeypatch.setenv("RB_OUT", "/data")
    config = load_run(path)
    assert (config.output_dir, config.model.prompt) == ("/data/x", "a photo of")


def test_accumulation_is_derived() -> None:
    train = TrainConfig(global_batch_size=48, micro_batch_size=8)
    assert [train.layout(n).grad_accum_steps for n in (1, 2, 3, 6)] == [6, 3, 2, 1]
    with pytest.raises(ValueError, match=r"48.*8 x 4 ranks = 32"):
        train.layout(4)


def test_the_projects_own_runs_load(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RB_DATA", "RB_WEIGHTS", "RB_DEMO"):
        monkeypatch.setenv(name, "/nowhere")
    runs = sorted((ROOT / "launch" / "runs").glob("*.yaml"))
    assert runs
    for path in runs:
        config = load_run(path)
        assert path.read_text().startswith("#"), f"{path.name} says nothing about purpose, hardware, time"
        assert config.train.layout(1).grad_accum_steps >= 1
        assert (ROOT / config.train.ds_config).is_file(), f"{path.name}: {config.train.ds_config}"
    assert dataclasses.is_dataclass(RunConfig)


def test_the_score_to_keep_the_best_of_must_be_one_of_validation(tmp_path: Path) -> None:
    path = write(tmp_path, "data: {val: {point_cloud: [{manifest: x}]}}\nvalidation: {every: 5}\n")
    for name in ("CIDEr", "loss_llm", "loss_total"):
        assert load_run(path, [f"validation.keep_best=val/point_cloud/{name}"]).validation.every == 5
    for change in (
        "SPICE",
        "loss_reg",
        "loss_itm model.itm_modalities=[image_region]",
        "CIDEr validation.num_examples=0",
    ):
        name, *others = change.split()
        with pytest.raises(ValueError, match=r"validation.keep_best: .*; they are .*val/point_cloud/loss_llm"):
            load_run(path, [f"validation.keep_best=val/point_cloud/{name}", *others])
