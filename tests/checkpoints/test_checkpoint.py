"""Checkpoints: the same bytes back, never a torn one, altered files found, names that do not fit listed."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from rb.checkpoints import checkpoint as ck


def state(step: int, names: tuple[str, ...] = ("a.weight", "b.bias")) -> ck.TrainState:
    """A state whose every number follows from the step, so that a mixture of two would show."""
    made = ck.TrainState()
    for number, name in enumerate(names):
        for kind in (ck.PARAMETER, ck.EXP_AVG, ck.EXP_AVG_SQ):
            made.tensors[kind][name] = torch.full((40, 50 + number), float(step)) + torch.randn(
                40, 50 + number, generator=torch.Generator().manual_seed(step)
            )
        made.tensors[ck.UPDATES][name] = torch.tensor([step + number])
    return made


def equal(one: ck.TrainState, other: ck.TrainState) -> bool:
    return all(
        one.tensors[kind].keys() == other.tensors[kind].keys()
        and all(torch.equal(t, other.tensors[kind][n]) for n, t in one.tensors[kind].items())
        for kind in ck.KINDS
    )


def test_round_trip_latest_and_pruning(tmp_path: Path) -> None:
    assert ck.find(tmp_path) is None
    for step in (1, 2, 3, 10):
        path = ck.save(tmp_path, step, state(step), {"config": {"seed": 7}}, keep=2)
    assert path == tmp_path / "checkpoints" / "step_0000010"
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["latest", "step_0000003", "step_0000010"]
    for place in (tmp_path, path):
        found = ck.require(place)
        assert (found.step, found.path, found.meta["config"]) == (10, path, {"seed": 7})
        assert equal(ck.load_state(found), state(10))
    parameters = ck.load_parameters(tmp_path)
    assert parameters.keys() == {"a.weight", "b.bias"}
    assert torch.equal(parameters["a.weight"], state(10).tensors[ck.PARAMETER]["a.weight"])
    ck.save(tmp_path, 10, state(11), {}, keep=2)  # written again, as after an attempt that `latest` never named
    assert equal(ck.load_state(ck.require(tmp_path)), state(11))


def test_the_best_stays_beside_the_newest(tmp_path: Path) -> None:
    def names() -> list[str]:
        return sorted(p.name for p in (tmp_path / "checkpoints").iterdir())

    for step in range(1, 6):
        ck.save(tmp_path, step, state(step), {}, keep=1, best=step == 2)
    assert names() == ["best", "latest", "step_0000002", "step_0000005"]
    assert ck.require(tmp_path / "checkpoints" / "best").step == 2
    assert ck.require(tmp_path).step == ck.require(tmp_path / "checkpoints" / "latest").step == 5
    assert torch.equal(
        ck.load_parameters(tmp_path / "checkpoints" / "best")["a.weight"], state(2).tensors[ck.PARAMETER]["a.weight"]
    )
    ck.save(tmp_path, 6, state(6), {}, keep=1, best=True)
    assert names() == ["best", "latest", "step_0000006"]
    assert ck.set_best(tmp_path, 6)
    assert not ck.set_best(tmp_path, 5)  # its folder is gone
    assert names() == ["latest", "step_0000006"]
    (tmp_path / "checkpoints" / "best").write_text("../elsewhere")
    with pytest.raises(ck.CheckpointError, match=r"best: names '../elsewhere', expected step_NUMBER"):
        ck.find(tmp_path / "checkpoints" / "best")


def test_killed_at_any_moment_the_newest_named_checkpoint_is_whole(tmp_path: Path) -> None:
    draw, reached = random.Random(0), []
    for _ in range(25):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:  # saves step after step until it is killed
            found = ck.find(tmp_path)
            step = found.step if found else 0
            while True:
                step += 1
                ck.save(tmp_path, step, state(step), {}, keep=2)
                os.write(write, b".")
        os.read(read, 1)  # one is whole; the kill comes in one of the next
        time.sleep(draw.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read), os.close(write)
        found = ck.find(tmp_path)
        if found is not None:
            assert equal(ck.load_state(found), state(found.step))
            assert not reached or found.step >= reached[-1]
            reached.append(found.step)
    assert len(set(reached)) > 5
    ck.save(tmp_path, 10**6, state(1), {}, keep=1)  # remains of killed writes are cleared away
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["latest", "step_1000000"]


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    ck.save(tmp_path, 1, state(1), {}, keep=2)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        try:
            ck.save(tmp_path, 2, state(2), {}, keep=2)
        except OSError as error:
            os._exit(0 if "step_0000002: cannot be written" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert equal(ck.load_state(ck.require(tmp_path)), state(1))


def test_what_is_missing_or_altered_is_named(tmp_path: Path) -> None:
    with pytest.raises(ck.CheckpointError, match="nowhere: no such run folder"):
        ck.find(tmp_path / "nowhere")
    with pytest.raises(ck.CheckpointError, match="holds no checkpoint"):
        ck.load_parameters(tmp_path)
    ck.save(tmp_path, 1, state(1), {}, keep=3)
    path = ck.save(tmp_path, 2, state(2), {"config": {"seed": 7}}, keep=3, best=True)
    tensors, meta = path / ck.STATE_FILE, path / ck.META_FILE
    good = tensors.read_bytes(), meta.read_bytes()

    def refused(match: str) -> None:
        for asked in (path, path.parent / ck.BEST):  # a certain one: not step 1 instead
            with pytest.raises(ck.CheckpointError, match=match):
                ck.require(asked)

    flipped = bytearray(good[0])
    flipped[len(flipped) // 2] ^= 1
    for broken in (bytes(flipped), good[0][:-8], b""):
        tensors.write_bytes(broken)
        refused("step_0000002/state.safetensors: altered")
    tensors.unlink()
    refused("state.safetensors: missing")
    tensors.write_bytes(good[0])
    meta.write_text(json.dumps(json.loads(good[1]) | {"step": 3}))
    refused("checkpoint.json: altered")
    meta.write_bytes(good[1][:-20])
    refused("checkpoint.json: altered or cut off")
    meta.unlink()
    refused("checkpoint.json: cannot be read")
    meta.write_bytes(good[1])
    assert ck.require(path.parent / ck.BEST).step == 2


def test_the_newest_whole_checkpoint_is_used_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2, 3):
        path = ck.save(tmp_path, step, state(step), {}, keep=3)
    folder, latest = path.parent, path.parent / ck.LATEST

    def found(step: int, *words: str) -> None:
        caplog.clear()
        for asked in (tmp_path, latest):
            assert equal(ck.load_state(ck.require(asked)), state(step))
        assert len(caplog.messages) == (2 if words else 0)
        for message in caplog.messages:
            assert f"step_{step:07d} is the newest whole checkpoint and is used" in message
            assert all(word in message for word in words), message

    found(3)
    latest.unlink()  # not: the run has none, so it starts at step 0
    found(3, "latest: missing")
    for text in ("", "../../elsewhere", "step_x", "\0" * 20):
        latest.write_text(text)
        found(3, "expected step_NUMBER")
    latest.write_bytes(b"\xff\xfe")
    found(3, "expected step_NUMBER")
    latest.write_text("step_0000009\n")
    found(3, "step_0000009/checkpoint.json: cannot be read")
    latest.write_text(
        "step_0000002\n"
    )  # killed between the new folder and its name in `latest`: the same steps are made again
    found(2)

    latest.write_text("step_0000003\n")
    tensors = path / ck.STATE_FILE
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    found(2, "step_0000003/state.safetensors: altered")
    (folder / "step_0000002" / ck.META_FILE).unlink()
    latest.unlink()
    found(1, "latest: missing", "step_0000003/state.safetensors: altered", "step_0000002/checkpoint.json")

    # A run that goes on from step 1 does not count the torn ones among the two that it keeps.
    ck.set_aside_torn(tmp_path, 1)
    ck.save(tmp_path, 4, state(4), {}, keep=2)
    assert sorted(p.name for p in folder.iterdir()) == ["latest", "step_0000001", "step_0000004"]
    found(4)

    for torn in ("step_0000001", "step_0000004"):
        (folder / torn / ck.STATE_FILE).write_bytes(b"")
    for _ in range(2):
        with pytest.raises(ck.CheckpointError, match=r"no whole checkpoint: .*remove this folder to start the run at"):
            ck.find(tmp_path)
        latest.unlink(missing_ok=True)
    shutil.rmtree(folder)  # the remedy
    assert ck.find(tmp_path) is None


def test_a_folder_that_is_deleted_loses_its_name_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ck.save(tmp_path, 1, state(1), {}, keep=1)
    path = tmp_path / "checkpoints" / "step_0000001"
    deleted: list[Path] = []
    monkeypatch.setattr(shutil, "rmtree", lambda folder, **_: deleted.append(Path(folder)))  # killed here
    ck.save(tmp_path, 2, state(2), {}, keep=1)
    assert not path.exists()
    assert len([folder for folder in deleted if folder.is_dir() and folder.name.startswith(".step_0000001")]) == 1
    monkeypatch.undo()
    (tmp_path / "checkpoints" / ck.LATEST).unlink()
    assert ck.require(tmp_path).step == 2
    ck.save(tmp_path, 3, state(3), {}, keep=1)
    assert sorted(p.name for p in path.parent.iterdir()) == ["latest", "step_0000003"]


def test_names_and_shapes_that_do_not_fit_are_listed() -> None:
    with pytest.raises(
        ck.CheckpointError, match=r"X: lacks 2 parameters \(c, d\); has what the model lacks: 1 .*\(a\)"
    ):
        ck.check_names("X", ["a", "b"], ["b", "c", "d"])
    with pytest.raises(ck.CheckpointError, match="and 15 more"):
        ck.check_names("X", [], [f"p{i}" for i in range(25)])
    model = {name: torch.nn.Parameter(torch.zeros(2, 3)) for name in ("a", "b")}
    assert ck.copy_parameters("X", model, {"a": torch.ones(2, 3)}) == ["b"]
    assert torch.equal(model["a"].data, torch.ones(2, 3))
    assert torch.equal(model["b"].data, torch.zeros(2, 3))
    with pytest.raises(ck.CheckpointError, match=r"X: b is \[3, 2\], the model's is \[2, 3\]"):
        ck.copy_parameters("X", model, {"b": torch.ones(3, 2)})
    with pytest.raises(ck.CheckpointError, match=r"X: has what the model lacks: 1 parameters \(c\)"):
        ck.copy_parameters("X", model, {"c": torch.ones(1)})
