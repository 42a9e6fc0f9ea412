"""What the command line itself, the scripts of launch/ and the toy world advise helps."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from rb.data.formats import Prediction
from rb.toy.demo import Demo
from rb.toy.raw.data_sets import write_raw
from rb.toy.world.judge import read_truth, toy_judge
from tests.support.printed import ROOT
from tests.support.remedies import Said, covers, helps, remedy, typed


@pytest.mark.parametrize("way", ["nearest", "list"])
@pytest.mark.parametrize("says", covers(["unknown command {}; {}`{} --help` lists them"]))
def test_a_misspelt_command(says: str, way: str) -> None:
    words = ["data", "verifi"]

    def follow(said: Said) -> None:
        near = said.found("did you mean '(.*?)'")
        assert way == "nearest" or near in typed(*said.commands[0].split()[1:])
        words[1:] = [near, "--help"]

    helps(says, lambda: typed(*words), follow)


TRUTH = {"s0": {"objects": []}}


@remedy("no truth file there; `rb toy raw` writes truth.json beside each data set")
def test_no_truth(tmp_path: Path):
    """The whole toy world takes a minute to write; its function writes a few scenes here."""
    path = tmp_path / "raw/refcoco/truth.json"

    def follow(said: Said) -> None:
        assert said.commands == ["rb toy raw"]
        write_raw(tmp_path / "raw", 0, {"refcoco": {"train": 2}})

    return lambda: read_truth([path]), follow


@remedy("no truth file (scene id to objects); give a truth.json of the toy world")
def test_another_file_as_truth(tmp_path: Path):
    (tmp_path / "truth.json").write_text(json.dumps(TRUTH))
    (tmp_path / "a.json").write_text("[]")
    path = [tmp_path / "a.json"]
    return lambda: read_truth(path), lambda said: path.append(path.pop().with_name(said.found(r"give a (truth\.json)")))


@remedy("scene {} is not in {}; give the truth.json of its data set")
def test_the_truth_of_another_set(tmp_path: Path):
    write_raw(tmp_path / "raw", 0, {"refcoco": {"train": 2}})
    truth = tmp_path / "raw/refcoco/truth.json"
    scene = next(iter(json.loads(truth.read_text())))
    (tmp_path / "a.json").write_text(json.dumps(TRUTH))
    paths = [tmp_path / "a.json"]
    asked = [Prediction(scene, scene, None, "image", "toy", "train", "a red cube", ["a red cube"], None)]
    return lambda: toy_judge(paths)(asked), lambda _: paths.append(paths.pop() and truth)


@pytest.mark.parametrize("way", ["name", "remove"])
@pytest.mark.parametrize("says", covers(["{}: exists already; name another folder, or remove it"]))
def test_a_foundation_over_a_folder(tmp_path: Path, says: str, way: str) -> None:
    out = [tmp_path / "out"]
    out[0].mkdir()
    follow = lambda _: out.append(out.pop().with_name("b")) if way == "name" else out[0].rmdir()  # noqa: E731
    helps(says, lambda: typed("toy", "foundation", "--out", out[0]), follow)


@remedy("is not empty and no earlier demo; name another folder with --out (make demo DEMO=...)")
def test_a_demo_over_something_else(tmp_path: Path, monkeypatch):
    """Its 12 minutes of work are left out: only where it goes is asked."""
    (tmp_path / "mine.txt").touch()
    words = ["toy", "demo", "--out", tmp_path]
    for name in ("prepare", "train", "evaluate"):
        monkeypatch.setattr(Demo, name, lambda self: None)
    for name in ("RB_DEMO", "DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    return lambda: typed(*words), lambda said: words.__setitem__(
        slice(-2, None), [said.found(r"with (--\w+)"), tmp_path / "new"]
    )


def script(folder: Path, name: str, *arguments: object, **environment: str) -> str:
    """What a script of launch/ says, with a `deepspeed` and a `python` that only show how they are called."""
    for program in ("deepspeed", "python"):
        (folder / program).write_text(f'#!/bin/sh\necho "{program} $@"\n')
        (folder / program).chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    command = [str(ROOT / "launch" / name), *map(str, arguments)]
    done = subprocess.run(
        command, env={**os.environ, "PATH": path, "HOME": str(folder), **environment}, capture_output=True, text=True
    )
    return done.stdout + done.stderr


@remedy("error: --wheels needs a folder")
def test_wheels_without_their_folder(tmp_path: Path):
    """The check itself runs in tests/gpu_check; `pip` is the one that only shows how it is called."""
    words: list[object] = ["--wheels"]
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels/a.whl").touch()
    call = lambda: script(tmp_path, "gpu_check.sh", *words, PYTHON=str(tmp_path / "python"))  # noqa: E731
    return call, lambda _: words.append(tmp_path / "wheels")
