"""`rb ablate`: plan, runs, table."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from rb.ablate.plan import read_plan
from rb.ablate.table import collect, format_table, paper_line
from rb.checkpoints import checkpoint
from rb.cli import main as rb
from rb.core import child_commands
from rb.core.config import FoundationConfig
from rb.core.run_file import to_tree
from rb.toy.raw.data_sets import write_raw
from tests.support import tiny
from tests.support.processes import Forked

ROOT = Path(__file__).resolve().parents[2]
STEPS = 3


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory, foundation: FoundationConfig) -> Path:
    """Two variants of a tiny run on a few toy scenes."""
    folder = tmp_path_factory.mktemp("ablation")
    write_raw(folder / "raw", 0, {"refcoco": {"train": 8, "test": 6}})
    for split in ("train", "test"):
        arguments = ["--raw", f"{folder}/raw/refcoco", "--out", f"{folder}/{split}", "--split", split]
        assert rb(["prepare", "refcoco", *arguments]) == 0
    run = {
        "model": to_tree(tiny.model_config(foundation, train_modalities=("image_region",))),
        "data": {"train": {"image_region": [{"manifest": f"{folder}/train"}]}, "num_workers": 0},
        "train": {
            "global_batch_size": 4,
            "micro_batch_size": 4,
            "ds_config": f"{ROOT}/ds_configs/zero2_cpu.json",
            "num_threads": 1,
        },
        "tracking": {"mlflow": False},
        "decode": {"num_beams": 1, "max_new_tokens": 4},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    question = {"data": f"{folder}/test", "limit": 6, "truth": f"{folder}/raw/refcoco/truth.json"}
    plan = {
        "run": f"{folder}/run.yaml",
        "overrides": [f"train.max_steps={STEPS}"],
        "seeds": [4],
        "evaluate": {"image_region": question},
        "variants": {
            "full model": None,
            "two stages": {"stages": [["model.loss_weights.llm=0", "train.max_steps=1"], ["optim.lr=1e-3"]]},
        },
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    return folder / "plan.yaml"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_chain_by_the_real_commands(
    plan_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven processes: the first is started as for a user, the others are forks, which import nothing again."""
    commands: list[Sequence[str]] = []

    def start(command: Sequence[str], **options: Any) -> Any:
        commands.append(command)
        return (subprocess.Popen if len(commands) == 1 else Forked)(command, **options)

    monkeypatch.setattr(child_commands, "subprocess", SimpleNamespace(Popen=start))
    out = plan_file.parent / "out"
    command = ["ablate", "--plan", str(plan_file), "--out", str(out), "--jobs", "2"]
    assert rb(command) == 0
    assert "[2/2]" in capsys.readouterr().err
    assert "| two stages | 1 |" in (out / "table.md").read_text()
    steps = {run.name: checkpoint.require(run).step for run in (out / "runs").iterdir()}
    assert steps == {"full_model-seed4": STEPS, "two_stages-seed4-stage1": 1, "two_stages-seed4": STEPS}
    log = (out / "runs" / "two_stages-seed4" / "log.txt").read_text()
    assert "two_stages-seed4-stage1: " in log
    assert "0 newly initialised" in log
    for entry in json.loads((out / "table.json").read_text())["scores"]:
        metrics = out / "runs" / f"{entry['variant'].replace(' ', '_')}-seed4" / "metrics" / "image_region.json"
        found = json.loads(metrics.read_text())
        name = {"right object": "right_object", "hard": "right_object_hard"}.get(entry["score"], entry["score"])
        assert entry["values"] == {"4": found["scores"][name]}
        assert found["num_examples"] == 6

    assert len(commands) == 7

    # Again: nothing is left to do.
    logs = {path.name: path.read_bytes() for path in (out / "logs").iterdir()}
    assert (
        sum(log.count(b"\n$ ") + log.startswith(b"$ ") for log in logs.values()) == 3 + 2 + 2
    )  # trainings, predictions, scorings
    assert rb(command) == 0
    assert {path.name: path.read_bytes() for path in (out / "logs").iterdir()} == logs

    # Another plan in the same folder is refused; what failed is named.
    other = plan_file.parent / "other.yaml"
    other.write_text(plan_file.read_text().replace(f"max_steps={STEPS}", f"max_steps={STEPS + 1}"))
    capsys.readouterr()
    assert rb(["ablate", "--plan", str(other), "--out", str(out), "--only", "full model"]) == 1
    assert "full_model-seed4: holds a run of another configuration than the plan's" in capsys.readouterr().err


def changed(plan_file: Path, folder: Path, **fields: Any) -> Path:
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(plan_file.read_text()) | fields, sort_keys=False))
    return path


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"variants": {}}, "variants: must be a mapping"),
        ({"variants": {"a": ["model.pafee=false"]}}, "unknown key 'model.pafee'; did you mean 'pafe'"),
        ({"variants": {"a": {"steps": []}}}, "variants.a: must be a list of section.key=value"),
        ({"variants": {"a": [], "A": []}}, "two names give the same folder name"),
        ({"evaluate": {"point_cloud": {"data": "x"}}}, "does not train point_cloud"),
        ({"evaluate": {"clouds": {"data": "x"}}}, "clouds"),
        ({"evaluate": {"image": {"data": "x", "shuffle_boxes": True}}}, "this modality has no boxes"),
        ({"overrides": []}, "give train.max_steps"),
        ({"seedz": [1]}, "unknown key 'seedz'; did you mean 'seeds'"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused_in_one_line(
    fields: dict[str, Any], words: str, plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = changed(plan_file, tmp_path, **fields)
    assert rb(["ablate", "--plan", str(path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert str(path) in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="has no variant 'b'; it has 'full model', 'two stages'"):
        read_plan(plan_file).chosen(["b"])


def test_a_plan_keeps_the_spelling_of_its_names(plan_file: Path, tmp_path: Path) -> None:
    """YAML would read the names below as 1.1, False, 10 and a date."""
    names = ["1.10", "no", "012", "2026-11-27"]
    path = changed(plan_file, tmp_path, variants={})
    listed = "".join(f"  {name}: [seed=1]\n" for name in names)
    path.write_text(path.read_text().replace("variants: {}\n", f"variants:\n{listed}"))
    plan = read_plan(path)
    assert [variant.name for variant in plan.variants] == names
    runs = [plan.training(variant, 4, 0, tmp_path / "a #b")[1] for variant in plan.variants]
    assert [run.name for run in runs] == ["1.10-seed4", "no-seed4", "012-seed4", "2026_11_27-seed4"]
    assert {run.output_dir for run in runs} == {f"{tmp_path}/a #b/runs"}


def test_mean_spread_and_ratio(plan_file: Path, tmp_path: Path) -> None:
    plan = read_plan(changed(plan_file, tmp_path, seeds=[0, 1, 2]))
    values = {"full_model": {0: 0.8, 1: 0.9, 2: 0.85}, "two_stages": {0: 0.4, 1: 0.45}}
    for slug, by_seed in values.items():
        for seed, value in by_seed.items():
            folder = tmp_path / "runs" / f"{slug}-seed{seed}" / "metrics"
            folder.mkdir(parents=True)
            (folder / "image_region.json").write_text(json.dumps({"scores": {"CIDEr": value}}))
    entries = collect(plan, tmp_path)
    full, two = (e for e in entries if e["score"] == "CIDEr")
    assert full["mean"] == pytest.approx(0.85)
    assert full["spread"] == pytest.approx(statistics.stdev([0.8, 0.9, 0.85]))
    assert two["ratio"] == pytest.approx(0.5)  # of the two seeds that both have
    text = format_table(plan, entries)
    assert "| full model | 3 | 85.0 ± 5.0 |" in text
    assert "| two stages | 2 | 42.5 ± 3.5 (0.50) |" in text
    assert text.endswith(f"\n\n{paper_line('image_region')}\n")


def test_the_projects_own_plan_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plan, pafe = (read_plan(ROOT / "launch" / "ablations" / f"{name}.yaml") for name in ("toy", "toy_pafe"))
    assert len(plan.seeds) == len(pafe.seeds) == 3
    configs = {v.name: [plan.training(v, 0, s, Path("x"))[1] for s in range(len(v.stages))] for v in plan.variants}
    assert {sum(c.train.max_steps or 0 for c in stages) for stages in configs.values()} == {400}
    assert [pafe.training(v, 0, 0, Path("x"))[1].model.pafe for v in pafe.variants] == [True, False]
    assert configs["idle groups moved"][0].optim.idle_groups == "moved"
    stages = read_plan(ROOT / "launch" / "ablations" / "toy_stages.yaml")
    lengths = [
        sum(stages.training(v, 0, s, Path("x"))[1].train.max_steps or 0 for s in range(len(v.stages)))
        for v in stages.variants
    ]
    assert lengths == [400, 400, 800, 800]
    hard = read_plan(ROOT / "launch" / "ablations" / "toy_hard_clouds.yaml")
    hard_models = [hard.training(v, 0, 0, Path("x"))[1].model for v in hard.variants]
    assert [(m.pafe, m.lora.shared) for m in hard_models] == [
        (True, False),
        (False, False),
        (True, True),
        (False, True),
    ]
    lora = read_plan(ROOT / "launch" / "ablations" / "toy_lora.yaml")
    assert lora.overrides == plan.overrides  # the same runs, so that its rows stand beside those of toy.yaml
    made = [lora.training(v, 0, 0, Path("x"))[1].model.lora for v in lora.variants]
    assert [(one.qformer, one.shared) for one in made] == [(True, False), (False, False), (True, True)]
    groups = read_plan(ROOT / "launch" / "ablations" / "toy_groups.yaml")
    assert groups.overrides == plan.overrides
    assert [groups.training(v, 0, 0, Path("x"))[1].data.group_by_source for v in groups.variants] == [1, 4]
    assert {stages[0].train.schedule for stages in configs.values()} == {
        "weighted_round_robin",
        "round_robin",
        "sequential",
    }


def test_the_papers_table_2_stands_below_the_modality_it_is_of() -> None:
    assert paper_line("image_region") == (
        "The paper's Table 2 (RegionBLIP OPT-2.7B, RefCOCO test): "
        "CIDEr 63.5 with PaFE, 44.7 without (0.70); SPICE 21.3 with PaFE, 14.8 without (0.69)."
    )
    assert paper_line("image") is None
