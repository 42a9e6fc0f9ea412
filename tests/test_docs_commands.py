"""README, CONTRIBUTING and docs/: every command line in them is one that the real parsers take. Nothing is run."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

from rb.cli import COMMANDS, Command, _find
from tests.support import markdown

ROOT = Path(__file__).parents[1]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in markdown.markdown_files(ROOT)}
LIVE = [name for name in PAGES if name != "CHANGELOG.md"]  # a change log tells of commands as they were
LINE = re.compile(r"([A-Z_]+=\S+ )*(rb \S|make \S|deepspeed \S|python -m eval\.)")
TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
GROUPS = {name.split()[0] for command in COMMANDS if " " in (name := command.name)}
GENERAL = ["COMMAND", "--help", "--version"]  # rb COMMAND, rb --help


def parse(words: list[str]) -> str:
    """What is wrong with one command line, or nothing."""
    if words[0] == "make":
        return "".join(f"no target {word}" for word in words[1:] if "=" not in word and word not in TARGETS)
    if words[0] == "deepspeed":
        words = ["rb", "train", *words[words.index("rb.train") + 1 :]]
    if words[0] == "python":
        words = ["rb", words[2].removeprefix("eval."), *words[3:]]
    if words[1] in GENERAL or (words[1] in GROUPS and words[2:] == ["--help"]):
        return ""
    command = _find(words[1:])
    if command is None:
        return "no such command"
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            command.parser().parse_intermixed_args(words[1 + len(command.name.split()) :])
    except SystemExit as stop:
        return "" if stop.code == 0 else output.getvalue().strip().splitlines()[-1]  # 0: --help
    return ""


@pytest.mark.parametrize("page", LIVE)
def test_command_lines(page: str) -> None:
    """Those in shell blocks, and in tables with a column of commands, as a whole."""
    lines = [*markdown.block_lines(PAGES[page]), *markdown.command_spans(PAGES[page])]
    commands = [markdown.words_of(line) for line in lines if LINE.match(line)]
    wrong = [f"{' '.join(words)}: {problem}" for words in commands if (problem := parse(words))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", LIVE)
def test_commands_in_sentences(page: str) -> None:
    """A sentence names a command without all its arguments: the command, or the group, and the options that it names exist."""
    wrong = []
    for span in markdown.spans(PAGES[page]):
        words = span.split()
        if (
            words[0] != "rb"
            or len(words) == 1
            or words[1] in GENERAL
            or " ".join(words[1:]).removesuffix(" --help") in GROUPS
        ):
            continue
        if words[1] in GROUPS and words[2] == "NAME":  # any command of the group
            words[1:3] = next(command.name for command in COMMANDS if command.name.startswith(f"{words[1]} ")).split()
        command = _find(words[1:])
        wrong += [f"{span}: no such command"] if command is None else unknown_options(command, words)
    assert not wrong, "\n".join(wrong)


def unknown_options(command: Command, words: list[str]) -> list[str]:
    known = command.parser()._option_string_actions
    options = [word.strip("[]") for word in words if word.strip("[]").startswith("--")]
    return [f"rb {command.name}: no option {option}" for option in options if option not in known]


def test_the_check_can_fail() -> None:
    assert parse(["rb", "predikt"]) == "no such command"
    assert "required" in parse(["rb", "export", "RUN_DIR"])
    assert "no target" in parse(["make", "coffee"])
    assert parse(["rb", "train", "--run", "FILE", "train.seed=1"]) == ""
    assert unknown_options(COMMANDS[0], ["--nowhere"])
