"""The demo runs its commands in its own process, and stops at the first that fails. The whole chain is in tests/test_wheel.py."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from rb.cli import main as rb
from rb.toy.demo import Demo

SET = ("RB_DEMO", "DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES", "TOKENIZERS_PARALLELISM")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the demo sets for its commands is taken back after each test."""
    for name in SET:
        monkeypatch.setenv(name, os.environ.get(name, ""))


def test_the_first_command_that_fails_ends_it_with_its_line_and_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []

    def commands(words: Sequence[str]) -> int:
        calls.append(" ".join(words))
        assert os.environ["RB_DEMO"] == f"{tmp_path / 'demo'}"
        return 75 if words[0] == "train" else 0

    with pytest.raises(SystemExit) as stopped:
        Demo(tmp_path / "demo", "opt", 3, "small", commands).run_all()
    assert stopped.value.code == 75
    shown = capsys.readouterr()
    train = "rb train --ranks 2 --run toy_opt train.max_steps=3"
    assert shown.err == f"demo stopped: '{train}' ended with exit code 75\n"
    assert [line.removeprefix("   $ rb ") for line in shown.out.splitlines() if line.startswith("   $ ")] == calls
    assert (calls[0], f"rb {calls[-1]}") == (f"toy raw --out {tmp_path}/demo/raw --scale small", train)


def test_a_fault_of_ours_is_shown_with_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def commands(words: Sequence[str]) -> int:
        raise AssertionError("a fault")

    with pytest.raises(AssertionError, match="a fault"):
        Demo(tmp_path / "demo", "t5", None, "demo", commands).run_all()
    assert capsys.readouterr().err == f"demo stopped: 'rb toy raw --out {tmp_path}/demo/raw' failed\n"


def test_a_real_command_that_fails_ends_the_real_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    demo = Demo(out, "opt", None, "small", rb)
    with pytest.raises(SystemExit) as stopped:
        demo.run("a table of nothing", "rb", "table", f"{tmp_path / 'none'}")
    assert stopped.value.code == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("rb table: error: ")
    assert second == f"demo stopped: 'rb table {tmp_path / 'none'}' ended with exit code 2"


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    assert rb(["toy", "demo", "--out", str(tmp_path), "--steps", "1"]) == 2
    assert "is not empty and no earlier demo" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
