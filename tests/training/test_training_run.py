"""Training runs by their real entries: the launcher, signals, kills, resumes, the run folder. Each launch checks many things."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from rb.checkpoints import checkpoint
from rb.core.config import DataConfig, DataSource, FoundationConfig, RunConfig, TrainConfig
from rb.core.run_file import load_run, to_tree
from rb.core.run_layout import TRAINING_LOCK
from rb.core.run_paths import open_run
from rb.tracking import metric_points
from rb.training.loop import check_request
from rb.training.run_folder import RunFolder, check_same_run, saved_run
from tests.support import small_data, tiny
from tests.support.processes import Started, finish, start, start_ranks
from tests.support.remedies import typed

ROOT = Path(__file__).resolve().parents[2]
ENTRY = "rb.train"
STEPS, LOG_EVERY = 28, 2
TERMS = {
    "image_region": ("itc", "itm", "itg", "llm", "reg", "total"),
    "point_cloud": ("itc", "itm", "itg", "llm", "total"),
}


@pytest.fixture(scope="module")
def run_file(foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 28 steps on ten regions and seven clouds, saved every 4 steps."""
    folder = tmp_path_factory.mktemp("training")
    small_data.write_set(folder / "regions", "image_region", 10)
    small_data.write_set(folder / "clouds", "point_cloud", 7)
    model = to_tree(tiny.model_config(foundation))
    tree = {
        "name": "reference",
        "output_dir": str(folder / "runs"),
        "model": model,
        "data": {
            "train": {
                "image_region": [{"manifest": str(folder / "regions")}],
                "point_cloud": [{"manifest": str(folder / "clouds")}],
            },
            "num_workers": 1,
        },
        "optim": {"lr": 1e-3, "warmup_steps": 3, "grad_clip": 1.0},
        "train": {
            "global_batch_size": 4,
            "micro_batch_size": 1,
            "contrastive_batch_size": 2,  # one pass of two ranks; test_end_to_end.py trains with pools of two passes
            "max_steps": STEPS,
            "log_every": LOG_EVERY,
            "checkpoint_every": 4,
            "ds_config": "ds_configs/zero2_cpu.json",
            "num_threads": 1,
            "timeout_s": 60,
        },
        "tracking": {"mlflow": False},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    return folder / "run.yaml"


def launcher(*arguments: object) -> subprocess.Popen[str]:
    """``rb train`` as a user types it: the deepspeed launcher, two ranks."""
    return subprocess.Popen(
        [sys.executable, "-m", "rb.cli", "train", "--ranks", "2", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def steps_logged(run_dir: Path) -> int:
    """The newest step in the journal, 0 before the first."""
    points = metric_points(run_dir / "journal.jsonl")
    return max((p.step for p in points.get("train/lr", [])), default=0)


def wait_for_step(run_dir: Path, step: int, *started: Started | subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while steps_logged(run_dir) < step and all(process.poll() is None for process in started):
        assert time.monotonic() < end, f"step {step} never came"
        time.sleep(0.02)


def final_state(run_dir: Path) -> checkpoint.TrainState:
    found = checkpoint.require(run_dir)
    assert found.step == STEPS
    return checkpoint.load_state(found)


@pytest.mark.slow
@pytest.mark.dist
def test_a_run_its_kills_and_its_resumes(run_file: Path) -> None:
    config = open_run(run_file)
    runs = Path(config.output_dir)
    reference, killed = runs / "reference", runs / "killed"

    # 1. To the end, on two ranks (`rb train` and the deepspeed launcher do so in tests/test_wheel.py).
    output = finish(*start_ranks(2, ENTRY, "--run", run_file))
    assert "step 24: saved" in output
    assert (reference / "checkpoints/latest").read_text().strip() == "step_0000028"
    assert sorted(p.name for p in (reference / "checkpoints").glob("step_*")) == ["step_0000024", "step_0000028"]
    points = metric_points(reference / "journal.jsonl")
    assert [p.step for p in points["train/lr"]] == list(range(LOG_EVERY, STEPS + 1, LOG_EVERY))
    for modality, terms in TERMS.items():
        steps = {p.step for p in points[f"train/{modality}/samples_per_s"]}
        assert len(steps) >= STEPS // LOG_EVERY // 2
        for term in terms:
            assert {p.step for p in points[f"train/{modality}/loss_{term}"]} == steps
    total = points["train/image_region/loss_total"][0].value
    assert total == pytest.approx(
        sum(points[f"train/image_region/loss_{t}"][0].value for t in TERMS["image_region"][:-1])
    )
    assert {"train/grad_norm", "train/samples_per_s", "train/skipped_steps", "train/epoch"} <= points.keys()
    assert load_run(reference / "config.yaml") == config
    place = json.loads((reference / "environment.json").read_text())
    assert (place["ranks"], place["optimizer_kernel"]) == (2, "torch")
    assert json.loads((reference / "weights.json").read_text())["weights"]
    assert output.count("run folder ") == 1  # only rank 0 speaks
    parameters = checkpoint.load_parameters(reference)
    assert any("lora_" in name and "point_cloud" in name for name in parameters)

    # 2. The same run, every rank killed at three random moments; in between another training tries the same folder.
    draw = random.Random(time.time_ns())  # other moments in every run of the tests; the journal keeps them
    arguments: list[object] = ["--run", run_file, "name=killed", "train.log_every=1"]
    for attempt in range(3):
        started = start_ranks(2, ENTRY, *arguments)
        wait_for_step(killed, draw.randint(1, 6) + 6 * attempt, *started)
        time.sleep(draw.uniform(0.0, 0.1))
        if attempt == 0:
            for process in started:
                process.send(signal.SIGSTOP)
            assert "another training is in this run folder" in finish(*start_ranks(1, ENTRY, *arguments), code=2)
        for process in started:
            process.send(signal.SIGKILL)
        assert [process.wait() for process in started] == [-signal.SIGKILL] * 2
        assert steps_logged(killed) < STEPS, "the run ended before it was killed"
        arguments = ["--resume", killed]

    # 3. Asked to stop by SIGTERM to `rb train`: saved at once, its own exit code, nobody left behind.
    step = steps_logged(killed)
    process = launcher("--resume", killed)
    wait_for_step(killed, step + 1, process)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 75, output
    assert "go on with --resume" in output
    assert checkpoint.require(killed).step == steps_logged(killed) < STEPS
    assert len(family) >= 4  # the launcher, two ranks, and their loaders
    assert not psutil.wait_procs(family, timeout=10)[1]

    # 4. To the end, from the checkpoint before the newest, which a disk spoiled: bit by bit what the run without kills made.
    newest = checkpoint.require(killed)
    tensors = newest.path / checkpoint.STATE_FILE
    tensors.write_bytes(tensors.read_bytes()[:-1])
    output = finish(*start_ranks(2, ENTRY, "--resume", killed))
    assert "is the newest whole checkpoint and is used" in output
    assert f"{newest.path.name}/state.safetensors: altered" in output
    one, other = final_state(reference), final_state(killed)
    for kind in checkpoint.KINDS:
        assert one.tensors[kind].keys() == other.tensors[kind].keys()
        for name, value in one.tensors[kind].items():
            assert torch.equal(value, other.tensors[kind][name]), f"{kind} {name} differs after kills"
    assert [p.step for p in metric_points(killed / "journal.jsonl")["train/lr"]] == list(range(1, STEPS + 1))


@pytest.mark.dist
def test_a_warm_start_that_blows_up_is_stopped_and_says_on_what(run_file: Path) -> None:
    """One process, no launcher; starts from a checkpoint, then a rate of 1e30 makes the third step's loss infinite or NaN."""
    config = load_run(run_file)
    warm = Path(config.output_dir) / "warm"
    state = checkpoint.TrainState()
    state.tensors["parameter"]["parts.point_cloud.temperature"] = torch.tensor([0.0625])
    for kind in ("exp_avg", "exp_avg_sq"):
        state.tensors[kind]["parts.point_cloud.temperature"] = torch.zeros(1)
    state.tensors["updates"]["parts.point_cloud.temperature"] = torch.tensor([1])
    warm.mkdir(parents=True)
    checkpoint.save(warm, 1, state, {"identities": {"foundation": {}}}, keep=1)
    shutil.copyfile(run_file, warm / "config.yaml")
    changes = ["name=hot", f"init_from={warm}", "optim.lr=1e30", "optim.warmup_steps=0", "train.max_bad_steps=3"]
    changes += ["train.checkpoint_every=1"]
    output = finish(start(ENTRY, "--run", run_file, *changes, "train.micro_batch_size=2"), code=3)
    assert "1 parameters taken over" in output
    assert "3 steps in a row" in output
    log = (warm.parent / "hot" / "log.txt").read_text()
    assert re.search(r"skipped, not finite: .* on 1 ranks; rank 0: losses", log)
    assert "image_region/" in log  # ids of samples
    assert "newly initialised: parts.image_region.temperature" in log
    step = checkpoint.require(warm.parent / "hot").step  # the step that ended the run is saved
    assert "all 4 samples of the step are at fault: the parameters" in typed("replay", warm.parent / "hot", step)


def test_a_request_that_cannot_work_is_said_before_anything_is_made(run_file: Path) -> None:
    config = load_run(run_file)
    check_request(config)
    lonely = dataclasses.replace(
        config, data=DataConfig(train={"image_region": (DataSource("somewhere"),)}, num_workers=0)
    )
    with pytest.raises(ValueError, match=r"train_modalities lists point_cloud, but data.train has no manifest for it"):
        check_request(lonely)
    uneven = dataclasses.replace(
        config, train=TrainConfig(global_batch_size=6, micro_batch_size=4, ds_config=config.train.ds_config)
    )
    with pytest.raises(ValueError, match="not a multiple"):
        check_request(uneven)
    with pytest.raises(ValueError, match=r"no run there \(.*config.yaml is missing\)"):
        saved_run(Path(config.output_dir) / "nowhere", [])


def test_a_resume_may_change_only_what_changes_no_result(run_file: Path) -> None:
    config = load_run(run_file)
    identities = {"foundation": {"blip2": "f" * 64}, "data": {"image_region": ["a" * 64]}}
    meta = {"config": to_tree(config), "identities": identities}

    def changed(*overrides: str) -> RunConfig:
        return load_run(run_file, overrides)

    free = changed(
        "train.log_every=1",
        "data.num_workers=3",
        "output_dir=moved",
        "init_from=moved",
        "tracking.mlflow=true",
        "decode.num_beams=2",
    )
    check_same_run(meta, to_tree(free), identities)
    moved = changed("data.train.image_region=[{manifest: elsewhere}]", "model.foundation.blip2=elsewhere")
    check_same_run(meta, to_tree(moved), identities)
    older = to_tree(config)  # of a version that lacked these fields: they mean their defaults
    del older["model"]["lora"]["qformer"], older["model"]["lora"]["shared"], older["train"]["schedule"]
    check_same_run(meta | {"config": older}, to_tree(config), identities)
    with pytest.raises(ValueError, match=r"model\.lora\.qformer: True -> False"):
        check_same_run(meta | {"config": older}, to_tree(changed("model.lora.qformer=false")), identities)
    with pytest.raises(ValueError) as raised:
        check_same_run(
            meta,
            to_tree(changed("seed=1", "train.max_steps=20", "data.train.image_region=[{manifest: x, repeat: 2}]")),
            identities | {"data": {"image_region": ["b" * 64]}},
        )
    for part in (
        "seed: 0 -> 1",
        "train.max_steps: 28 -> 20",
        "repeat: 1 -> 2",
        "contents of data.image_region",
        "init_from",
    ):
        assert part in str(raised.value)


def test_a_lock_of_a_dead_process_is_no_obstacle(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        RunFolder(tmp_path).claim(new=True)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / TRAINING_LOCK).read_text().startswith(f"process {child} on ")
    child = os.fork()
    if child == 0:  # a lock of one process does not hold against itself, so another one must try
        RunFolder(tmp_path).claim(new=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_run_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    RunFolder(tmp_path).write("config.yaml", "name: earlier")
    with pytest.raises(ValueError, match=r"holds a run already; continue it with --resume .*, or start another one"):
        RunFolder(tmp_path).claim(new=True)
    RunFolder(tmp_path).claim(new=False)
