"""``rb checkpoints``: what it says of sound and damaged folders, and its exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from rb.checkpoints import checkpoint as ck
from rb.checkpoints.listing import list_checkpoints
from rb.core.exit_codes import FAILED, FINISHED, WRONG_REQUEST
from tests.support.raw_data import cli_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three checkpoints; the first is the best, the last the latest."""
    for step in (1, 2, 3):
        state = ck.TrainState({kind: {"a": torch.ones(9)} for kind in ck.KINDS})
        ck.save(tmp_path, step, state, {}, keep=3, best=step == 1)
    return tmp_path


def listed(run: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = cli_run("checkpoints", str(run))
    return code, capsys.readouterr().out


def test_whole_ones(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = listed(run, capsys)
    lines = text.splitlines()
    assert code == FINISHED
    assert [(line.split()[0], line.split("MB  ")[1]) for line in lines] == [
        ("step_0000003", "whole, latest"),
        ("step_0000002", "whole"),
        ("step_0000001", "whole, best"),
    ]
    assert cli_run("checkpoints", str(run), "--json") == FINISHED
    tree = json.loads(capsys.readouterr().out)
    assert (tree["good"], tree["latest"], tree["best"]) == (True, "step_0000003", "step_0000001")
    assert tree["rows"][0]["bytes"] == sum(file.stat().st_size for file in (run / "checkpoints/step_0000003").iterdir())
    assert tree["faults"] == tree["left_overs"] == []


def test_damaged_ones_are_named_and_only_the_latest_decides(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run / "checkpoints"
    state = folder / "step_0000002" / ck.STATE_FILE
    state.write_bytes(state.read_bytes()[:-1] + b"\7")
    shutil.rmtree(folder / "step_0000001")
    (folder / ".step_0000004.1-ab.tmp").mkdir()
    code, text = listed(run, capsys)
    assert code == FINISHED
    assert "state.safetensors: altered, its sha256 is not the recorded one" in text
    assert f"{folder}/best: names step_0000001, which is missing" in text
    assert "1 unfinished" in text
    (folder / "step_0000003" / ck.META_FILE).unlink()
    code, text = listed(run, capsys)
    assert code == FAILED
    assert "checkpoint.json: cannot be read (No such file or directory); it is not a whole checkpoint" in text
    assert ", latest" in text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "latest: missing"),
        ("../x", "names '../x', expected step_NUMBER"),
        ("step_9", "names step_9, which is missing"),
    ],
)
def test_a_pointer_that_names_none(
    run: Path, content: str | None, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pointer = run / "checkpoints" / "latest"
    pointer.unlink()
    if content is not None:
        pointer.write_text(content)
    code, text = listed(run, capsys)
    assert code == FAILED
    assert text.count("whole") == 3
    assert says in text


def test_a_run_without_any_and_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(tmp_path, capsys) == (FAILED, f"{tmp_path}: no checkpoint\n")
    assert cli_run("checkpoints", str(tmp_path / "none")) == WRONG_REQUEST
    assert "none: no such run folder" in capsys.readouterr().err


def test_one_that_a_training_deletes_meanwhile_is_left_out(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ck.verify

    def verify(path: Path) -> ck.Checkpoint:
        if path.name == "step_0000002":
            shutil.rmtree(path)
        return real(path)

    monkeypatch.setattr("rb.checkpoints.listing.verify", verify)
    found = list_checkpoints(run)
    assert [row.step for row in found.rows] == [3, 1]
    assert found.good
    assert found.faults == []
