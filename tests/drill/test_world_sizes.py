"""A run goes on with another number of ranks: all 12 changes among 1, 2, 3 and 4, each a real training that is resumed in the middle.

Image regions and clouds in turns, steps of 12 samples of which 6 at a time are contrasted. What holds: parameters, moments and update counts that the new
ranks took over are the checkpoint's, bit for bit, in the optimizer and in every rank's model; every later step has the samples that it had
without the change; its losses are those of the run without the change within 1e-5; and the contrastive batch cannot be changed.
"""

from __future__ import annotations

import json
import shutil
from itertools import permutations
from pathlib import Path

import pytest
import torch
import yaml

from rb.checkpoints import checkpoint
from rb.core import dist
from rb.core.config import FoundationConfig
from rb.core.exit_codes import leave
from rb.core.metric_names import TRAIN, parse_name
from rb.core.run_file import to_tree
from rb.core.run_layout import CHECKPOINTS, LATEST, RUN_JOURNAL, step_name
from rb.core.run_paths import open_run
from rb.core.stopping import StopRequest
from rb.tracking import metric_points
from rb.training.loop import finish, prepare, start_tracking, take_steps
from rb.training.run_folder import saved_run
from tests.support import processes, small_data, tiny
from tests.support.trials import Figures

SAVED, STEPS = 4, 8
MOST = 1e-5
SEEN = "seen.json"  # step -> position -> sample


def train(run_file: Path, resume: Path | None) -> None:
    """One rank: a whole run, or the rest of one, as `rb.train` makes it; looks at what was taken over, and notes the samples of every step."""
    dist.init(timeout_s=120)
    config = saved_run(resume, []) if resume else open_run(run_file)
    run = prepare(config, resume)
    if resume:
        check_state(run.engine, checkpoint.load_state(checkpoint.require(resume)))
    seen, step_of = {}, run.engine.train_step

    def train_step(*arguments):  # type: ignore[no-untyped-def]
        result = step_of(*arguments)
        for rank in dist.gather_objects(dict(zip(map(str, result.positions), result.ids, strict=True))) or []:
            seen.setdefault(str(run.done + 1), {}).update(rank)
        return result

    run.engine.train_step = train_step  # type: ignore[method-assign]
    stop = StopRequest()
    with start_tracking(run, resumed=resume is not None) as tracker, run.saver:
        code = take_steps(run, tracker, stop)
        finish(run, tracker, code, stop)
    if dist.is_main():
        (run.folder.path / SEEN).write_text(json.dumps(seen))
    dist.shutdown()
    leave(code)


def check_state(engine, saved: checkpoint.TrainState) -> None:
    for name, parameter in engine.parameters.items():
        assert torch.equal(parameter.data, saved.tensors["parameter"][name]), f"{name}: the model's own copy"
    taken = engine.gather_state()
    for kind in checkpoint.KINDS if taken is not None else ():
        assert taken.tensors[kind].keys() == saved.tensors[kind].keys()
        for name, value in saved.tensors[kind].items():
            assert torch.equal(taken.tensors[kind][name], value), f"{kind} of {name}"


class Runs:
    """Runs without a change, each made when it is first asked for."""

    def __init__(self, folder: Path, foundation: FoundationConfig) -> None:
        self.folder, self.file = folder, folder / "run.yaml"
        small_data.write_set(folder / "regions", "image_region", 17)
        small_data.write_set(folder / "clouds", "point_cloud", 13)
        data = {m: [{"manifest": str(folder / n)}] for m, n in (("image_region", "regions"), ("point_cloud", "clouds"))}
        sizes = {"global_batch_size": 12, "micro_batch_size": 1, "contrastive_batch_size": 6, "max_steps": STEPS}
        tree = {
            "output_dir": str(folder),
            "model": to_tree(tiny.model_config(foundation)),
            "data": {"train": data, "num_workers": 1},
            "optim": {"lr": 1e-3, "warmup_steps": 2, "grad_clip": 1.0},
            "train": sizes
            | {"log_every": 1, "checkpoint_every": SAVED, "num_threads": 1, "ds_config": "ds_configs/zero2_cpu.json"},
            "tracking": {"mlflow": False},
        }
        self.file.write_text(yaml.safe_dump(tree))

    def of(self, ranks: int) -> Path:
        """The folder of the run on so many ranks."""
        run = self.folder / f"ranks_{ranks}"
        if not run.is_dir():
            made = processes.start_function_ranks(ranks, train, self.file, None)
            processes.finish(*made)
            (self.folder / "run").rename(run)
        return run

    def changed(self, before: int, after: int) -> Path:
        """The folder of one that began on ``before`` ranks and goes on from step ``SAVED`` on ``after``."""
        run = self.folder / f"from_{before}_to_{after}"
        shutil.copytree(self.of(before), run)
        shutil.rmtree(run / CHECKPOINTS / step_name(STEPS))
        (run / CHECKPOINTS / LATEST).write_text(step_name(SAVED) + "\n")
        (run / SEEN).unlink()
        processes.finish(*processes.start_function_ranks(after, train, self.file, run))
        return run


@pytest.fixture(scope="module")
def runs(foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("world_sizes"), foundation)


def losses(run: Path) -> dict[tuple[str, int], float]:
    points = metric_points(run / RUN_JOURNAL)
    named = {name: parse_name(name) for name in points}
    of_training = [name for name, parts in named.items() if parts and parts.stage == TRAIN and parts.term]
    return {(name, point.step): point.value for name in of_training for point in points[name]}


@pytest.mark.parametrize(("before", "after"), list(permutations(range(1, 5), 2)))
def test_a_run_goes_on_with_other_ranks(runs: Runs, before: int, after: int, figures: Figures) -> None:
    same, run = runs.of(before), runs.changed(before, after)
    assert json.loads((run / "environment.json").read_text())["ranks"] == after
    expected, seen = (json.loads((folder / SEEN).read_text()) for folder in (same, run))
    steps = list(map(str, range(SAVED + 1, STEPS + 1)))
    assert list(seen) == steps
    figures["steps with other samples"] = sum(seen[step] != expected[step] for step in steps)
    assert figures["steps with other samples"] == 0
    assert {len(samples) for samples in seen.values()} == {12}
    old, new = losses(same), losses(run)
    assert old.keys() == new.keys()
    assert {step for _, step in new} == set(range(1, STEPS + 1))
    apart = max(abs(new[key] - value) / abs(value) for key, value in old.items())
    figures["losses apart, relative"] = apart
    assert apart < MOST


def test_the_contrastive_batch_stays(runs: Runs) -> None:
    resumed = processes.start("rb.train", "--resume", runs.of(1), "train.contrastive_batch_size=12")
    assert "train.contrastive_batch_size: 6 -> 12" in processes.finish(resumed, code=2)
