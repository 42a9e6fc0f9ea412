"""What the messages about a run advise helps: requests that cannot work, folders that are taken, `rb init`, `rb config keys`."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from rb.core.config import DataConfig, DataSource, OptimConfig, RunConfig, TrainConfig
from rb.core.files import sha256
from rb.core.locks import FileLock
from rb.core.modality import IMAGE_REGION, POINT_CLOUD
from rb.core.run_file import to_tree
from rb.core.run_layout import RUN_CONFIG, TRAINING_LOCK
from rb.training.engine import choose_kernel, ds_settings
from rb.training.loop import check_request
from rb.training.run_end import ATTEMPT_VARIABLE, outcome, write_end
from rb.training.run_folder import RunFolder, check_same_run
from rb.training.schedule import Schedule
from tests.support import tiny
from tests.support.remedies import Said, covers, helps, remedy, typed
from tests.support.small_data import write_set

ZERO2 = json.loads((Path(__file__).parents[2] / "ds_configs/zero2_cpu.json").read_text())
# Message -> (DeepSpeed's settings, those as it says).
SETTINGS = {
    "{}: section {} is not supported: {}": (ZERO2 | {"optimizer": {"type": "Adam"}}, ZERO2),
    '{}: {} is {}, the run says {}; write "auto" there': (
        ZERO2 | {"gradient_clipping": 7.0},
        ZERO2 | {"gradient_clipping": "auto"},
    ),
    "write it as the project's own in ds_configs/ are": ("{", ZERO2),
}


@pytest.mark.parametrize("says", covers(SETTINGS, also=["use the run's optim section"]))
def test_settings_of_deepspeed(tmp_path: Path, says: str) -> None:
    path, (before, after) = tmp_path / "ds.json", SETTINGS[says]
    path.write_text(before if isinstance(before, str) else json.dumps(before))
    train = TrainConfig(global_batch_size=4, micro_batch_size=4, ds_config=str(path))
    helps(says, lambda: ds_settings(train, OptimConfig(), 1), lambda _: path.write_text(json.dumps(after)))


@remedy("install a C++ compiler and ninja (and the CUDA toolkit), or use optim.kernel=auto")
def test_a_kernel_that_cannot_be_built(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    kernel = ["deepspeed_fused"]
    follow = lambda said: kernel.append(kernel.pop() and said.found(r"use optim\.kernel=(\w+)"))  # noqa: E731
    return lambda: bool(choose_kernel(kernel[0], torch.device("cpu"))), follow


@pytest.mark.parametrize("way", ["list", "take"])
@pytest.mark.parametrize("says", covers(["list one there, or take it out of model.train_modalities"]))
def test_a_modality_without_data(foundation, says: str, way: str) -> None:
    given = {"modalities": (IMAGE_REGION, POINT_CLOUD), "data": {IMAGE_REGION: (DataSource("somewhere"),)}}

    def check() -> None:
        model = tiny.model_config(foundation, train_modalities=given["modalities"])
        train = TrainConfig(global_batch_size=4, micro_batch_size=4, ds_config="ds_configs/zero2_cpu.json")
        check_request(RunConfig(model=model, data=DataConfig(train=given["data"]), train=train), 1)

    def follow(_: Said) -> None:
        if way == "list":
            given["data"][POINT_CLOUD] = (DataSource("somewhere"),)
        else:
            given["modalities"] = (IMAGE_REGION,)

    helps(says, check, follow)


SCHEDULE = {
    "is unknown, choose one of {}": ({"kind": "random"}, lambda said: {"kind": said.found("choose one of (\\w+)")}),
    "no modality to train, list at least one": (
        {"samples_per_epoch": {}},
        lambda _: {"samples_per_epoch": {IMAGE_REGION: 8}},
    ),
    "0 samples; add a manifest for it or do not train it": (
        {"samples_per_epoch": {IMAGE_REGION: 8, POINT_CLOUD: 0}},
        lambda _: {"samples_per_epoch": {IMAGE_REGION: 8}},
    ),
}


@pytest.mark.parametrize("says", covers(SCHEDULE))
def test_a_schedule(says: str) -> None:
    changes, advised = SCHEDULE[says]
    given = {"kind": "round_robin", "samples_per_epoch": {IMAGE_REGION: 8}, "global_batch_size": 4} | changes
    helps(says, lambda: Schedule(**given), lambda said: given.update(advised(said)))


TAKEN = "wait for it, stop it, or use another name (name=...)"


@pytest.mark.parametrize("way", ["wait", "name"])
@pytest.mark.parametrize("says", covers([TAKEN]))
def test_a_folder_of_a_live_run(tmp_path: Path, says: str, way: str) -> None:
    other, name = FileLock(tmp_path / "run" / TRAINING_LOCK), ["run"]
    other.acquire()
    helps(
        says,
        lambda: RunFolder(tmp_path / name[0]).claim(new=True),
        lambda _: other.release() if way == "wait" else name.append(name.pop() + "2"),
    )
    other.release()


THERE = "holds a run already; continue it with --resume {}, or start another one under a new name (name=...)"


BARE = "it has saved no checkpoint: remove the folder if you need nothing of it"


@pytest.mark.parametrize("way", ["continue", "name", "remove"])
@pytest.mark.parametrize("says", covers([THERE], [BARE]))
def test_a_folder_that_holds_a_run(finished: Path, tmp_path: Path, says: str, way: str) -> None:
    """``--resume`` finds the run; that it then goes on is the matter of test_training_run.py."""
    (tmp_path / "run").mkdir()
    shutil.copy(finished / "run" / RUN_CONFIG, tmp_path / "run")
    start = [lambda: RunFolder(tmp_path / "run").claim(new=True)]

    def follow(said: Said) -> None:
        if way == "name":
            start[0] = lambda: RunFolder(tmp_path / "another").claim(new=True)
        elif way == "remove":
            assert BARE in said
            shutil.rmtree(tmp_path / "run")
        else:
            start[0] = lambda: RunFolder(Path(said.found(r"--resume (\S+),"))).claim(new=False)

    helps(says, lambda: start[0](), follow)


@remedy("no run there ({} is missing); start it with --run FILE")
def test_a_resume_of_nothing(tmp_path: Path, foundation):
    (tmp_path / "run.yaml").write_text(
        "name: a\nmodel: {train_modalities: [image]}\ndata: {train: {image: [{manifest: lost}]}}"
    )
    words = ["train", "--resume", tmp_path / "run", "--dry-run"]
    write_set(tmp_path / "lost", "image", 8)
    more = [f"model.foundation.{part}={getattr(foundation, part)}" for part in ("blip2", "text_branch")]
    more += ["train.max_steps=2", "train.global_batch_size=4", "train.micro_batch_size=4", "model.max_text_tokens=12"]

    def follow(said: Said) -> None:
        words[1:3] = [said.found(r"start it with (--run) FILE"), tmp_path / "run.yaml"]
        words.extend([*more, f"output_dir={tmp_path}", "train.ds_config=ds_configs/zero2_cpu.json"])

    return lambda: typed(*words), follow


CHANGED = "Undo the change, or start a new run with init_from"


@pytest.mark.parametrize("way", ["undo", "start"])
@pytest.mark.parametrize("says", covers([CHANGED]))
def test_a_resume_of_something_else(tmp_path: Path, says: str, way: str) -> None:
    config, identities = RunConfig(), {"foundation": {"blip2": sha256(b"a")}, "data": {IMAGE_REGION: ["a" * 64]}}
    meta = {"config": to_tree(config), "identities": identities}
    now = {"config": dataclasses.replace(config, seed=1), "new": False}

    def follow(_: Said) -> None:
        if way == "undo":
            now["config"] = config
        else:  # a new run is compared with no checkpoint; that it starts from the other is test_training_run.py's matter
            now.update(new=True, config=dataclasses.replace(now["config"], init_from="runs/before"))

    helps(says, lambda: None if now["new"] else check_same_run(meta, to_tree(now["config"]), identities), follow)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    "says", covers(["{}: error: {}: the run did not finish ({}); {}"], also=["go on with --resume {}"])
)
def test_a_run_that_broke_off(finished: Path, tmp_path: Path, monkeypatch, says: str, begun: bool) -> None:
    """The launcher ended, the run did not: it goes on (tests of launchers do it for real), and says itself how it ended."""
    run = tmp_path / "run"
    run.mkdir()
    if begun:
        shutil.copy(finished / "run" / RUN_CONFIG, run)

    def follow(said: Said) -> None:
        assert ("go on with --resume" if begun else "the same command starts again") in said
        if begun:
            assert Path(said.found(r"go on with --resume (\S+)")) == run
        write_end(run, 0, 3, 3)

    monkeypatch.setenv(ATTEMPT_VARIABLE, "two")
    helps(says, lambda: outcome(run, "two", 137 if begun else 0), follow)


@remedy("no key begins with {}; `rb config keys` lists all")
def test_keys_of_nothing():
    prefix = ["optimiser"]

    def follow(said: Said) -> None:
        listed = typed(*said.commands[0].split()[1:])
        prefix[0] = next(line.split(".")[0] for line in listed.splitlines() if line.startswith("optim."))

    return lambda: typed("config", "keys", prefix[0]), follow


@pytest.fixture
def init(tmp_path: Path, foundation, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The words of an `rb init` that works: regions and their held-out set, clouds."""
    monkeypatch.chdir(tmp_path)
    for name, modality, split in (
        ("r", IMAGE_REGION, "train"),
        ("v", IMAGE_REGION, "val"),
        ("t", IMAGE_REGION, "test"),
        ("c", POINT_CLOUD, "train"),
    ):
        write_set(tmp_path / name, modality, 8, split)
    return ["init", "mine.yaml", "--data", "r", "v", "t", "--foundation", Path(foundation.blip2).parent]


def parts_of(foundation, folder: Path, *blip2: str, points: bool = False) -> Path:
    folder.mkdir()
    for name in blip2:
        (folder / name).symlink_to(foundation.blip2)
    (folder / "text_branch").symlink_to(foundation.text_branch)
    if points:
        (folder / "point_bert").symlink_to(foundation.point_encoder)
    return folder


@remedy("no set to train on, only {}; add one of split train")
def test_init_without_a_set_to_train_on(init: list[object]):
    init.remove("r")
    return lambda: typed(*init), lambda _: init.insert(3, "r")


@remedy("holds {}; name one of them, such as --foundation {}")
def test_init_with_two_foundations(init: list[object], foundation, tmp_path: Path):
    init[-1] = parts_of(foundation, tmp_path / "two", "blip2-a", "blip2-b")
    return lambda: typed(*init), lambda said: init.__setitem__(-1, said.found(r"such as --foundation (\S+)"))


NO_POINTS = "put the point encoder there, or leave out the clouds"


@pytest.mark.parametrize("way", ["put", "leave"])
@pytest.mark.parametrize("says", covers([NO_POINTS]))
def test_init_of_clouds_without_their_encoder(
    init: list[object], foundation, tmp_path: Path, says: str, way: str
) -> None:
    init[-1] = parts_of(foundation, tmp_path / "alone", "blip2-opt")
    init.insert(3, "c")

    def follow(said: Said) -> None:
        if way == "put":
            (tmp_path / "alone" / said.found(r"has no (\w+)/")).symlink_to(foundation.point_encoder)
        else:
            init.remove("c")

    helps(says, lambda: typed(*init), follow)


AGAIN = "{}: exists already; name another file, or remove it"


@pytest.mark.parametrize("way", ["name", "remove"])
@pytest.mark.parametrize("says", covers([AGAIN]))
def test_init_over_a_file(init: list[object], says: str, way: str) -> None:
    typed(*init)
    helps(
        says,
        lambda: typed(*init),
        lambda _: init.__setitem__(1, "b.yaml") if way == "name" else Path("mine.yaml").unlink(),
    )


covers(
    [
        "{}: look at it, then rb train --run {}",
        "Train it: rb train --run FILE [--ranks N]; look first: rb train --run FILE --dry-run.",
        "# afterwards: rb predict --checkpoint runs/{} --data {} --modality {} --out FILE",
    ]
)


def test_what_init_says_comes_next(init: list[object], finished: Path) -> None:
    """Every command that it prints and writes into the file; the run folder is one that was trained."""
    said = Said(typed(*init))
    assert said.found(r"then (rb train --run \S+)") == "rb train --run mine.yaml"
    text = Said(Path("mine.yaml").read_text())
    words = text.found(r"look first: rb (train --run FILE --dry-run)").replace("FILE", "mine.yaml").split()
    assert "error" not in typed(*words, "model.num_points=24", "model.max_text_tokens=12")
    shutil.copytree(finished / "run", "runs/mine")
    words = text.found(r"# afterwards: rb (predict [^\n]*)").replace("FILE", "p.jsonl").split()
    assert "captions in p.jsonl" in typed(*words)


# Followed where a real run of several seconds is made anyway:
covers(
    ["Put it back and continue with --resume, or start the run again"]
)  # test_run_breaks_off.py: a run whose folder is moved
covers(
    ["make room, then go on from the last checkpoint with --resume {}"]
)  # test_full_disk.py: all steps on a full disk
covers(["run folder {}: caption with rb predict --checkpoint {}"])  # test_import_released.py: a run that captions
covers(["which this run lacks; set model.foundation.text_head={}"])  # the same
covers(
    ["stopped by {}; go on with --resume {}", "before the first step; go on with --resume {}"]
)  # test_training_run.py: kills and resumes
