"""The command line: light help, names that are nearly right, options in any order, verbosity, shipped run files, old names."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from rb import __version__, cli
from rb.cli import main as rb
from rb.core import progress
from rb.core.run_file import load_run
from rb.core.run_paths import find_run_file
from rb.core.verbosity import VARIABLE, set_verbosity

ROOT = Path(__file__).parents[1]
NAMES = [command.name for command in cli.COMMANDS]
HEAVY = {"torch", "transformers", "deepspeed", "mlflow", "peft"}


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=True)


def test_help_is_light() -> None:
    """Processor time of the child, which does not depend on what else the machine does; and what it imports."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = python("-X", "importtime", "-m", "rb.cli", "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "rb.core.exit_codes" in imported
    assert not HEAVY & imported
    for name in NAMES:
        assert name.split()[0] in done.stdout


def test_no_parser_imports_torch() -> None:
    code = "import sys; from rb.cli import overview; overview(filled=True); print(*sys.modules)"
    assert not HEAVY & set(python("-c", code).stdout.split())


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        rb([*name.split(), "--help"])
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: rb {name} ")
    assert "--quiet" in shown


@pytest.mark.parametrize("group", sorted({name.split()[0] for name in NAMES if " " in name}))
def test_every_group_lists_its_commands(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As `rb GROUP --help`, which the error about an unknown command names."""
    with pytest.raises(SystemExit, match="0"):
        rb([group, "--help"])
    shown = capsys.readouterr().out
    assert all(name.split()[1] in shown for name in NAMES if name.split()[0] == group)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        rb(["--version"])
    assert capsys.readouterr().out == f"rb {__version__}\n"


@pytest.mark.parametrize(
    ("words", "nearest"), [("predcit", "predict"), ("data verfiy x", "verify"), ("weigths check", "weights")]
)
def test_names_that_are_nearly_right(words: str, nearest: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert rb(words.split()) == 2
    assert f"did you mean {nearest!r}?" in capsys.readouterr().err


def test_a_group_alone_asks_for_an_action(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        rb(["data"])
    assert "ACTION" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert rb(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "--shuffle-boxes" in script
    assert "doctor" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_verbosity_reaches_commands_that_a_command_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "normal")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("RANK", raising=False)
    assert progress.shown()
    monkeypatch.setenv("RANK", "1")
    assert not progress.shown()
    monkeypatch.delenv("RANK")
    rb(["-q", "runs", "list", "--json"])
    assert os.environ[VARIABLE] == "quiet"
    assert not progress.shown()
    set_verbosity("normal")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert not progress.shown()
    assert list(progress.bar([1, 2])) == [1, 2]


def test_shipped_run_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert rb(["runs", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == {
        p.stem for place in ("runs", "ablations", "evaluations") for p in (ROOT / "launch" / place).glob("*.yaml")
    }
    assert all(row["purpose"] for row in rows.values())
    assert rb(["runs", "show", "toy_opt"]) == 0
    assert capsys.readouterr().out == (ROOT / "launch/runs/toy_opt.yaml").read_text()
    for target in ("mine.yaml", "."):
        assert rb(["runs", "copy", "toy_t5", target]) == 0
    assert load_run("mine.yaml") == load_run("./toy_t5.yaml") == load_run(ROOT / "launch/runs/toy_t5.yaml")
    assert rb(["runs", "copy", "toy_t5"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert rb(["runs", "show", "toy"]) == 0
    assert rb(["runs", "show", "none"]) == 2


def test_run_files_by_name_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = [find_run_file(name).resolve() for name in ("toy_opt", "toy_opt.yaml", "launch/runs/toy_opt.yaml")]
    assert named == [ROOT / "launch/runs/toy_opt.yaml"] * 3
    with pytest.raises(ValueError, match="rb runs list"):
        find_run_file("toy_op")


@pytest.mark.parametrize("name", ["predict", "score", "table", "report", "compare"])
def test_old_names(name: str, tmp_path: Path) -> None:
    """``python -m eval.NAME`` is ``rb NAME``, also with its errors."""
    missing = ["--data", "x", "--modality", "image", "--out", "y", "--checkpoint"] if name == "predict" else []
    done = subprocess.run(
        [sys.executable, "-m", f"eval.{name}", *missing, str(tmp_path / "none")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"rb {name}: error: ")
