"""``rb extend``: a run goes on for longer as if it had been that long from the start; what its rate does; what is refused and what then helps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from rb.checkpoints import checkpoint
from rb.core.config import DataConfig, DataSource, Extension, FoundationConfig, OptimConfig, RunConfig, TrainConfig
from rb.core.locks import FileLock
from rb.core.optim_config import KEEP, RATES, RESTART, STRETCH
from rb.core.run_file import dump_run, load_run, to_tree
from rb.core.run_layout import RUN_CONFIG, RUN_JOURNAL, TRAINING_LOCK, earlier_config
from rb.data.pipeline import open_training_data
from rb.model.weights.build import build_model
from rb.tracking.journal import merged_values, metric_points
from rb.training.extending import extend
from rb.training.optim import rate_at
from rb.training.run_folder import check_same_run, identities_of, saved_run
from tests.support import small_data, tiny
from tests.support.processes import finish, start
from tests.support.remedies import Said, covers, helps, remedy, typed

OPTIM = OptimConfig(lr=1e-2, min_lr=1e-3, warmup_steps=4, warmup_start_lr=1e-4)


def rates(*extensions: tuple[str, int, int, int]) -> list[float]:
    """Of all steps of a run of 20 steps, or as the extensions say."""
    optim = dataclasses.replace(OPTIM, extensions=tuple(Extension(*one) for one in extensions))
    total = extensions[-1][3] if extensions else 20
    return [rate_at(step, optim, total) for step in range(total)]


def plain(total: int) -> list[float]:
    return [rate_at(step, OPTIM, total) for step in range(total)]


def test_rates_of_a_longer_run() -> None:
    assert rates((KEEP, 20, 20, 40)) == plain(20) + [OPTIM.min_lr] * 20
    assert rates((STRETCH, 20, 20, 40)) == plain(20) + plain(40)[20:]
    assert rates((RESTART, 20, 20, 40)) == plain(20) + plain(20)


def test_rates_of_a_run_that_stopped_before_its_end() -> None:
    assert rates((KEEP, 8, 20, 40)) == rates((KEEP, 20, 20, 40))
    assert rates((STRETCH, 8, 20, 40)) == plain(20)[:8] + plain(40)[8:]
    assert rates((RESTART, 8, 20, 40)) == rates((RESTART, 20, 20, 40))


@pytest.mark.parametrize("second", RATES)
@pytest.mark.parametrize("first", RATES)
def test_a_second_extension_changes_no_rate_of_before(first: str, second: str) -> None:
    once, twice = rates((first, 20, 20, 40)), rates((first, 20, 20, 40), (second, 32, 40, 60))
    assert twice[:32] == once[:32]
    after = {
        KEEP: once[32:] + [OPTIM.min_lr] * 20,
        STRETCH: (plain(20) + plain(40) if first == RESTART else plain(60))[
            32:
        ],  # the newest cosine is what is stretched
        RESTART: once[32:] + plain(20),
    }
    assert twice[32:] == after[second]


@pytest.fixture
def run_file(foundation: FoundationConfig, tmp_path: Path) -> Path:
    """Of seven clouds, at a constant rate, after a warm-up."""
    small_data.write_set(tmp_path / "clouds", "point_cloud", 4)  # 7 samples
    tree = {
        "name": "run",
        "output_dir": str(tmp_path),
        "model": to_tree(tiny.model_config(foundation)) | {"train_modalities": ["point_cloud"]},
        "data": {"train": {"point_cloud": [{"manifest": str(tmp_path / "clouds")}]}, "num_workers": 0},
        "optim": {"lr": 1e-3, "min_lr": 1e-3, "warmup_steps": 2},
        "train": {
            "global_batch_size": 2,
            "micro_batch_size": 1,
            "epochs": 2,
            "log_every": 1,
            "ds_config": "ds_configs/zero2_cpu.json",
            "num_threads": 1,
        },
        "tracking": {"mlflow": False},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "run.yaml"


@pytest.mark.dist
def test_a_longer_run_is_what_it_would_have_been_from_the_start(run_file: Path) -> None:
    """Two epochs, then two more, against four at once: parameters, moments, counts, losses."""
    whole, run = run_file.with_name("whole"), run_file.with_name("run")
    finish(start("rb.train", "--run", run_file, "name=whole", "train.epochs=4"))
    finish(start("rb.train", "--run", run_file))
    before = (run / RUN_CONFIG).read_bytes()
    said = typed("extend", run, "--epochs", 4, "--rate", KEEP)
    assert "7 -> 14 steps, 7 of them made" in said
    assert "rate (keep): 0.001 at step 7, 0.001 at step 8" in said
    assert (run / earlier_config(1)).read_bytes() == before
    (extension,) = load_run(run / RUN_CONFIG).optim.extensions
    assert (extension.from_step, extension.old_steps, extension.new_steps) == (7, 7, 14)
    assert "@" in extension.by
    assert extension.when

    assert said.splitlines()[-1] == f"go on with rb train --resume {run}"
    finish(start("rb.train", "--resume", run))
    one, other = (checkpoint.require(folder) for folder in (whole, run))
    assert one.step == other.step == 14
    states = [checkpoint.load_state(found).tensors for found in (one, other)]
    for kind in checkpoint.KINDS:
        assert states[0][kind].keys() == states[1][kind].keys()
        assert all(torch.equal(value, states[1][kind][name]) for name, value in states[0][kind].items()), kind
    points = [metric_points(folder / RUN_JOURNAL) for folder in (whole, run)]
    for name in ("train/point_cloud/loss_total", "train/lr", "train/epoch"):
        assert [point.value for point in points[1][name]] == [point.value for point in points[0][name]]
    assert merged_values(run / RUN_JOURNAL, "tags")["extension_1"] == str(extension)


covers(["go on with rb train --resume {}"])  # the test above


@pytest.fixture
def begun(foundation: FoundationConfig, tmp_path: Path) -> Path:
    """The folder of a run of 4 steps, 2 of them made; trained by nobody."""
    small_data.write_set(tmp_path / "clouds", "point_cloud", 4)  # 7 samples
    config = RunConfig(
        name="run",
        output_dir=str(tmp_path),
        model=tiny.model_config(foundation, train_modalities=("point_cloud",)),
        data=DataConfig(train={"point_cloud": (DataSource(str(tmp_path / "clouds")),)}, num_workers=0),
        optim=OptimConfig(warmup_steps=3),
        train=TrainConfig(2, 1, max_steps=4, ds_config="ds_configs/zero2_cpu.json"),
    )
    run = tmp_path / "run"
    run.mkdir()
    identities = identities_of(build_model(config.model, 0, "meta"), open_training_data(config.data.train, 0))
    checkpoint.save(run, 2, checkpoint.TrainState(), {"config": to_tree(config), "identities": identities}, keep=1)
    (run / RUN_CONFIG).write_text(dump_run(config))
    return run


def test_a_resume_after_an_extension_may_change_only_what_it_said(begun: Path) -> None:
    meta = checkpoint.require(begun).meta
    check = lambda *overrides: check_same_run(meta, to_tree(saved_run(begun, list(overrides))), meta["identities"])  # noqa: E731
    with pytest.raises(
        ValueError, match=r"train.max_steps: 4 -> 8.*longer by `rb extend RUN_DIR --steps 8 --rate RATE`"
    ):
        check("train.max_steps=8")
    with pytest.raises(
        ValueError, match=r"train.epochs: 30 -> 40.*longer by `rb extend RUN_DIR --epochs 40 --rate RATE`"
    ):
        check("train.epochs=40")
    extend(begun, STRETCH, steps=8)
    check()
    with pytest.raises(ValueError, match=r"optim.lr: 0.0001 -> 0.1"):
        check("optim.lr=0.1")
    meta = {**meta, "config": to_tree(saved_run(begun, []))}  # a checkpoint of after the extension
    check()
    with pytest.raises(ValueError, match=r"train.max_steps: 8 -> 4"):
        check("train.max_steps=4", "optim.extensions=[]")
    extend(begun, KEEP, epochs=9)
    config = saved_run(begun, [])
    assert (config.train.max_steps, config.train.epochs) == (None, 9)
    assert [one.new_steps for one in config.optim.extensions] == [8, 32]
    check()


def test_extensions_that_do_not_follow_each_other_are_refused() -> None:
    for fields, words in (
        ((("fast", 4, 4, 8),), "optim.extensions.rate"),
        (((KEEP, 5, 4, 8),), "optim.extensions.old_steps: must be at least 5"),
        (((KEEP, 4, 4, 4),), "optim.extensions.new_steps: must be at least 5"),
        (((KEEP, 4, 4, 8), (KEEP, 8, 9, 12)), r"optim.extensions\[1\].old_steps: must be 8"),
    ):
        with pytest.raises(ValueError, match=words):
            OptimConfig(extensions=tuple(Extension(*one) for one in fields))


@remedy("say how long it is in the end, such as --steps {}")
def test_a_length_that_is_none(begun: Path):
    words = ["extend", begun, "--steps", 4, "--rate", KEEP]
    return lambda: typed(*words), lambda said: words.__setitem__(3, said.found(r"--steps (\d+)"))


@pytest.mark.parametrize("way", ["more", KEEP, STRETCH])
@pytest.mark.parametrize("says", covers(["begins; add more steps, or choose the rate `{}` or `{}`"]))
def test_a_restart_that_is_all_warm_up(begun: Path, says: str, way: str) -> None:
    words = ["extend", begun, "--steps", 7, "--rate", RESTART]

    def follow(said: Said) -> None:
        if way == "more":
            words[3] = 4 + int(said.found(r"warmup_steps = (\d+)")) + 1
        else:
            assert way in said.commands
            words[5] = way

    helps(says, lambda: typed(*words), follow)


@pytest.mark.parametrize("way", ["stop", "wait"])
@pytest.mark.parametrize("says", covers(["stop it first, or wait for its end"]))
def test_a_folder_in_which_a_training_is(begun: Path, says: str, way: str) -> None:
    other = FileLock(begun / TRAINING_LOCK)
    other.acquire()
    helps(says, lambda: typed("extend", begun, "--steps", 8, "--rate", KEEP), lambda _: other.release())


LONGER = [
    "; a run is made longer by `rb extend RUN_DIR --steps {} --rate RATE`",
    "; a run is made longer by `rb extend RUN_DIR --epochs {} --rate RATE`",
]


@pytest.mark.parametrize("says", covers(LONGER))
def test_a_resume_that_should_be_longer(begun: Path, says: str) -> None:
    words = ["train", "--resume", begun, "--dry-run", "train.max_steps=8"]
    if "epochs" in says:
        words[-1:] = ["train.epochs=40"]

    def follow(said: Said) -> None:
        command = said.commands[-1].replace("RUN_DIR", str(begun)).replace("RATE", KEEP)
        assert "error" not in typed(*command.split()[1:])
        if "epochs" in says:
            words.append("train.max_steps=null")

    helps(says, lambda: typed(*words), follow)


@pytest.mark.parametrize("way", ["leave", "extend"])
@pytest.mark.parametrize("says", covers(["leave both out, or make the run longer with rb extend"]))
def test_a_resume_that_is_not_as_long_as_was_said(begun: Path, says: str, way: str) -> None:
    extend(begun, KEEP, steps=8)
    words = ["train", "--resume", begun, "--dry-run", "train.max_steps=9"]

    def follow(_: Said) -> None:
        if way == "leave":
            words.pop()
        else:
            extend(begun, KEEP, steps=9)

    helps(says, lambda: typed(*words), follow)
