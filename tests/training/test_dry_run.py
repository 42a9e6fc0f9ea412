"""``rb train --dry-run`` says what training would do and writes nothing; ``rb config`` shows, compares and explains run files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from rb.cli import main
from rb.core.config import FoundationConfig, RunConfig
from rb.core.run_file import load_run, to_tree
from rb.core.run_paths import open_run
from rb.data.formats import read_manifest
from rb.model.weights.build import build_model
from rb.training.schedule import Schedule
from tests.support import small_data, tiny

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two small sets and a run file of them, two epochs of three and two steps a modality."""
    made = tmp_path_factory.mktemp("dry")
    small_data.write_set(made / "regions", "image_region", 10)
    small_data.write_set(made / "clouds", "point_cloud", 7)
    tree = {
        "name": "dry",
        "output_dir": str(made / "runs"),
        "model": to_tree(tiny.model_config(foundation)),
        "data": {
            "train": {"image_region": [{"manifest": "regions"}], "point_cloud": [{"manifest": "clouds", "repeat": 2}]},
            "val": {"point_cloud": [{"manifest": "clouds", "first": 3}]},
        },
        "train": {"global_batch_size": 4, "micro_batch_size": 1, "epochs": 2, "ds_config": "ds_configs/zero2_cpu.json"},
        "validation": {"every": 5},
    }
    (made / "run.yaml").write_text(yaml.safe_dump(tree))
    return made


def contents(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_it_says_what_training_would_do_and_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    before = contents(folder)
    command = ["train", "--dry-run", "--ranks", "2", "--run", str(folder / "run.yaml")]
    assert main([*command, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert main(command) == 0
    text = capsys.readouterr().out
    assert contents(folder) == before
    assert not list(tmp_path.iterdir())

    config = open_run(folder / "run.yaml")
    assert plan["config"] == to_tree(config)
    assert plan["run_folder"] == str(folder / "runs" / "dry")
    assert plan["batch"] == {
        "ranks": 2,
        "micro_batch_size": 1,
        "grad_accum_steps": 2,
        "global_batch_size": 4,
        "contrastive_batch_size": 4,
        "qformer_passes": 2,
    }
    assert "ITC and ITM contrast 4 samples; more than one pass of the ranks, so the Q-Former runs twice" in text
    samples = {"image_region": 0, "point_cloud": 0}
    for modality, (row,) in plan["data"]["train"].items():
        samples[modality] = row["samples"] * row["repeat"]
        assert row["manifest"] == config.data.train[modality][0].manifest
    assert plan["data"]["val"]["point_cloud"][0]["samples"] == 3
    schedule = Schedule("weighted_round_robin", samples, 4)
    total = schedule.total_steps(2)
    turns = [schedule.at(step).modality for step in range(total)]
    assert plan["schedule"]["samples_per_epoch"] == samples
    assert plan["schedule"]["steps_of_first_epoch"] == schedule.epoch_steps(0)
    assert plan["schedule"]["total_steps"] == total
    assert plan["schedule"]["steps_per_modality"] == {m: turns.count(m) for m in samples}
    assert plan["schedule"]["first_turns"] == turns[:20]
    trained = build_model(config.model, config.seed).model.trainable_parameters()
    assert plan["parameters"]["trainable_in_all"] == sum(parameter.numel() for parameter in trained.values())
    assert set(plan["parameters"]["trainable"]) == {"image_region", "point_cloud"}
    for words in ("(new)", str(folder / "clouds"), f"{total} steps", "first turns:", "config.yaml", "would write"):
        assert words in text


def test_it_says_how_many_sources_a_step_reads(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--dry-run", "--ranks", "2", "--run", str(folder / "run.yaml")]
    orders = ["data.group_by_source=5", "data.order=blocks", "data.window_blocks=3"]
    assert main(command) == 0
    assert "order  all samples of an epoch shuffled; every caption reads its source\n" in capsys.readouterr().out
    assert main([*command, *orders, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert main([*command, *orders]) == 0
    text = capsys.readouterr().out
    records = {  # none has more than five samples: each is one group
        modality: row["repeat"] * read_manifest(Path(row["manifest"]) / "manifest.json").counts["records"]
        for modality, (row,) in plan["data"]["train"].items()
    }
    order = plan["order"]
    assert (order["kind"], order["block_records"], order["window_blocks"]) == ("blocks", 256, 3)
    assert order["groups_per_epoch"] == records
    for modality, number in records.items():
        assert order["sources_per_step"][modality] == round(
            4 * number / plan["schedule"]["samples_per_epoch"][modality], 1
        )
    assert (
        "order  blocks of 256 records shuffled, then what each 3 of them hold; up to 5 captions of a source together\n"
        in text
    )
    assert f"about {order['sources_per_step']['image_region']} sources read and encoded a step" in text


def test_steps_per_modality_stop_where_the_run_stops(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--dry-run", "--ranks", "1", "--json", "--run", str(folder / "run.yaml"), "train.max_steps=9"]
    assert main(command) == 0
    plan = json.loads(capsys.readouterr().out)["schedule"]
    assert plan["total_steps"] == 9
    assert sum(plan["steps_per_modality"].values()) == 9
    assert len(plan["first_turns"]) == 9


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.global_batch_size=3"], ["train.global_batch_size 3", "2 ranks"]),
        (["data.train.image_region=[{manifest: gone}]"], ["data.train.image_region[0].manifest: gone", "looked at"]),
        (["model.foundation.point_encoder="], ["model.foundation.point_encoder", "nothing"]),
        (["data.train={image_region: [{manifest: regions}]}", "validation.every=0", "data.val={}"], ["point_cloud", "data.train"]),
    ],
)  # fmt: skip
def test_what_would_stop_training_stops_it(
    folder: Path, overrides: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--dry-run", "--ranks", "2", "--run", str(folder / "run.yaml"), *overrides]) == 2
    error = capsys.readouterr().err
    for word in words:
        assert word in error


def test_config_show_diff_and_keys(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("RB_WEIGHTS", "RB_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    run = str(folder / "run.yaml")
    assert main(["config", "show", run, "train.max_steps=3"]) == 0
    (tmp_path / "config.yaml").write_text(capsys.readouterr().out)
    assert load_run(tmp_path / "config.yaml") == open_run(run, ["train.max_steps=3"])
    assert main(["config", "show", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == to_tree(load_run(tmp_path / "config.yaml"))

    assert main(["config", "diff", run, str(tmp_path)]) == 1
    assert capsys.readouterr().out == "train.max_steps: None -> 3\n"
    assert main(["config", "diff", run, run]) == 0
    assert main(["config", "diff", "opt_2.7b", "paper_opt_2.7b.yaml", "--json"]) == 1
    assert [row["key"] for row in json.loads(capsys.readouterr().out)] == ["name", "train.schedule"]
    assert main(["config", "diff", "opt_2.7b", "no_such_run"]) == 2
    assert "no_such_run" in capsys.readouterr().err

    assert main(["config", "show", "opt_2.7b"]) == 0
    assert "${RB_WEIGHTS}/blip2-opt-2.7b" in capsys.readouterr().out
    assert main(["config", "keys", "optim.lr"]) == 0
    assert capsys.readouterr().out == "optim.lr  (float, default 0.0001)\n    Peak rate.\n"
    assert main(["config", "keys", "--json"]) == 0
    listed = {row["key"]: row for row in json.loads(capsys.readouterr().out)}
    assert listed["model.loss_weights"]["default"] == RunConfig().model.loss_weights
    assert main(["config", "keys", "nothing.like.this"]) == 2
