"""``rb bench scaling``: real trainings on one rank and on two, with the same share of a batch. The drill `scaling` goes over two hosts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from rb.bench.scaling import batch_of, run, sizes_of
from rb.cli import COMMANDS
from rb.core.config import FoundationConfig, RunConfig, TrainConfig
from rb.core.run_file import to_tree
from rb.launching.launchers import Place
from tests.support import small_data, tiny
from tests.support.processes import finish, start, start_function


def test_a_rank_has_the_same_share_at_every_size() -> None:
    nodes = (Place("a", 8), Place("b", 8))
    sizes = sizes_of(nodes)
    assert [[(place.host, place.num_ranks) for place in size] for size in sizes] == [
        [("a", 1)],
        [("a", 8)],
        [("a", 8), ("b", 8)],
    ]
    assert sizes_of(nodes[:1]) == sizes[:2]
    assert sizes_of([Place("a", 1), Place("b", 1)]) == [(Place("a", 1),), (Place("a", 1), Place("b", 1))]
    config = RunConfig(train=TrainConfig(global_batch_size=128, contrastive_batch_size=32))
    assert [batch_of(config, nodes, size) for size in sizes] == [(8, 8), (64, 32), (128, 32)]
    with pytest.raises(ValueError, match=r"global_batch_size 128 is not a multiple of 24 ranks; use a number"):
        batch_of(config, [*nodes, Place("c", 8)], nodes)


@pytest.fixture
def run_file(foundation: FoundationConfig, tmp_path: Path) -> Path:
    small_data.write_set(tmp_path / "clouds", "point_cloud", 4)
    tree = {
        "name": "small",
        "output_dir": str(tmp_path / "runs"),
        "model": to_tree(tiny.model_config(foundation)) | {"train_modalities": ["point_cloud"]},
        "data": {"train": {"point_cloud": [{"manifest": str(tmp_path / "clouds")}]}, "num_workers": 0},
        "train": {"global_batch_size": 4, "epochs": 100, "ds_config": "ds_configs/zero2_cpu.json"},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.slow
@pytest.mark.dist
def test_two_ranks_beside_one(run_file: Path, tmp_path: Path) -> None:
    words = ("bench", "scaling", "--run", run_file, "--ranks", 2, "--steps", 10)
    output = finish(start("rb.cli", *words, "--json"))
    one, two = json.loads(output[output.index("{\n") :])["sizes"]
    assert (one["ranks"], one["nodes"], one["global_batch_size"]) == (1, 1, 2)
    assert (two["ranks"], two["nodes"], two["global_batch_size"]) == (2, 1, 4)
    assert one["of_one_rank"] == one["of_one_node"] == two["of_one_node"] == 1
    assert two["samples_per_s"] == pytest.approx(2 * two["samples_per_s_a_rank"])
    assert two["of_one_rank"] == pytest.approx(two["samples_per_s_a_rank"] / one["samples_per_s_a_rank"])
    assert two["modalities"]["point_cloud"] == pytest.approx(two["samples_per_s"], rel=0.2)
    assert not any((tmp_path / "runs").iterdir())


def fail(run_file: Path) -> None:
    """Measures where every training ends at once with exit code 3."""
    command = next(one for one in COMMANDS if one.name == "bench scaling")
    args = command.parser().parse_intermixed_args(["--run", str(run_file), "--ranks", "2"])
    args.rb = (sys.executable, "-c", "print('the shard is gone'); raise SystemExit(3)")
    sys.exit(run(args))


def test_a_training_that_fails_is_shown_and_its_log_stays(run_file: Path, tmp_path: Path) -> None:
    said = finish(start_function(fail, run_file), code=1)
    assert "ended with exit code 3" in said
    assert "the shard is gone" in said
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "logs" / "1_ranks_on_1.log").is_file()
