"""``rb plan`` beside the real run: steps are those of the schedule, FLOPs those that torch counts in a real step, every line says how it is known."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from rb.bench.step_counters import count_step
from rb.core.config import FoundationConfig
from rb.core.run_file import to_tree
from rb.core.run_paths import open_run
from rb.costs.meta_model import model_of
from rb.costs.real_step import torch_counter, with_numbers
from rb.costs.typical_batch import typical_batches
from rb.data.order import Arrangement
from rb.data.pipeline import open_training_data
from rb.model.weights.build import build_model
from rb.plan.commands import _card
from rb.plan.factors import CARDS
from rb.training.schedule import Schedule
from tests.support import small_data, tiny
from tests.support.processes import finish, start
from tests.support.remedies import Fault, Said, remedy


@pytest.fixture(scope="module")
def run_file(foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    small_data.write_set(folder / "regions", "image_region", 10)
    small_data.write_set(folder / "clouds", "point_cloud", 7)
    tree = {
        "model": to_tree(tiny.model_config(foundation)),
        "data": {
            "group_by_source": 2,
            "train": {"image_region": [{"manifest": "regions"}], "point_cloud": [{"manifest": "clouds", "repeat": 2}]},
        },
        "train": {"global_batch_size": 16, "epochs": 3, "ds_config": "ds_configs/zero2_cpu.json"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    return folder / "run.yaml"


def values(tree: dict[str, Any], name: str) -> dict[str, float]:
    return {line["of"]: line["low"] for line in tree["lines"] if line["name"] == name}


def test_steps_are_those_of_the_run(run_file: Path) -> None:
    output = finish(start("rb.cli", "plan", "--run", run_file, "--gpus", "2", "--kind", "a100-80", "--json"))
    tree = json.loads(output[output.index("{\n") :])
    config = open_run(run_file)
    data = open_training_data(config.data.train, config.seed, Arrangement.of(config.data))
    samples = {modality: len(data[modality].stream) for modality in config.train.in_order(data)}
    schedule = Schedule(config.train.schedule, samples, 16, config.seed)
    turns = Counter(schedule.at(step).modality for step in range(schedule.total_steps(3)))
    assert values(tree, "samples of an epoch") == samples
    assert values(tree, "steps") == turns
    assert values(tree, "steps of the first epoch") == schedule.epoch_steps(0)
    for modality, opened in data.items():
        records = len({reader.record_of(n) for reader in opened.readers for n in range(len(reader))})
        assert values(tree, "an epoch encodes a source")[modality] == pytest.approx(opened.stream.num_groups / records)
    assert tree["batch"]["micro_batch_size"] == tree["largest_micro_batch"] == 8
    assert {line["how"] for line in tree["lines"]} == {"counted", "predicted"}
    for line in tree["lines"]:
        assert 0 <= line["low"] <= line["high"], line


def test_without_data_the_papers_sets_stand_in_and_a_card_is_given_by_numbers(run_file: Path) -> None:
    numbers = ("--memory-gb", 24, "--teraflops", 100, "--bandwidth-gbs", 900)
    gone = "data.train={image_region: [{manifest: gone}], point_cloud: [{manifest: gone}]}"
    text = finish(start("rb.cli", "plan", "--run", run_file, "--gpus", 16, *numbers, gone))
    assert "the paper's set stands in for a manifest that is not here" in text
    assert "16 ranks x micro-batch 1 x 1 accumulated" in text
    assert "between nodes" in text
    assert next(
        line.split()[-2] for line in text.splitlines() if line.startswith("samples of an epoch") and "image" in line
    )


@pytest.mark.parametrize("modality", ["image_region", "point_cloud"])
def test_flops_are_those_of_a_real_step(foundation: FoundationConfig, modality: str) -> None:
    """Counted without numbers, and by torch's own counter in a step on the CPU."""
    config = tiny.model_config(foundation, frozen_dtype="float32")
    counted = count_step(model_of(config), modality, 6, 2)
    model = build_model(config, seed=0).model
    with torch_counter() as real:
        model(with_numbers(next(typical_batches(model, modality, 6, 2)), model)).total.backward()
    assert counted.total("flops") == pytest.approx(real.get_total_flops(), rel=0.01)


@remedy("or give --memory-gb, --teraflops and --bandwidth-gbs of another")
def test_a_card_that_is_not_named() -> tuple[Fault, Callable[[Said], object]]:
    args = SimpleNamespace(kind=None, memory_gb=None, teraflops=100.0, bandwidth_gbs=None)
    return lambda: _card(args), lambda _: vars(args).update(kind=next(iter(CARDS)))  # type: ignore[arg-type]
