"""No code that comes with a model's folder runs: every library call says so, and folders that bring code are tried."""

from __future__ import annotations

import ast
import builtins
import json
import shutil
from pathlib import Path

import pytest

from rb.core.config import FoundationConfig
from rb.core.library_folders import read_tokenizer
from rb.core.text import TextProcessor
from rb.model.weights.build import build_model
from tests.support import tiny

ROOT = Path(__file__).resolve().parents[1]
# Theirs take no such argument and have no way to code: our own API, which ends here too, and PEFT's for the adapter just written.
WITHOUT = ("RegionBLIP", "PeftModel")


def calls(tree: ast.AST, name: str) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name
    ]


def trusting(source: str) -> list[str]:
    """The ``from_pretrained`` calls that do not say ``trust_remote_code=False`` themselves; and any that says it is true."""
    found = []
    tree = ast.parse(source)
    for call in calls(tree, "from_pretrained"):
        said = [k.value for k in call.keywords if k.arg == "trust_remote_code"]
        no = len(said) == 1 and isinstance(said[0], ast.Constant) and said[0].value is False
        if not no and ast.unparse(call.func.value) not in WITHOUT:
            found.append(f"line {call.lineno}: {ast.unparse(call)}")
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code" and ast.unparse(node.value) != "False":
            found.append(f"line {node.value.lineno}: trust_remote_code={ast.unparse(node.value)}")
    return found


def test_every_call_of_a_library_says_that_no_code_is_trusted() -> None:
    files = [path for room in ("rb", "eval") for path in (ROOT / room).rglob("*.py")]
    found = {path.relative_to(ROOT).as_posix(): trusting(path.read_text()) for path in files}
    assert {name: lines for name, lines in found.items() if lines} == {}
    assert sum(len(calls(ast.parse(path.read_text()), "from_pretrained")) for path in files) >= 5


def test_the_scan_sees_what_it_must() -> None:
    assert trusting("AutoTokenizer.from_pretrained(x)")
    assert trusting("AutoTokenizer.from_pretrained(x, trust_remote_code=given)")
    assert trusting("AutoConfig.from_pretrained(x, trust_remote_code=True)")
    assert trusting("load(x, trust_remote_code=True)")
    assert trusting("transformers.AutoModel.from_pretrained(x, **options)")
    assert not trusting("AutoModel.from_pretrained(x, trust_remote_code=False)")


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What code of a folder would leave; a question on stdin, which a user may answer with y, fails the test too."""

    def asked(*_: object) -> str:
        raise AssertionError("the library asks whether to run a folder's code")

    monkeypatch.setattr(builtins, "input", asked)
    return tmp_path / "ran"


def bring_code(folder: Path, ran: Path) -> None:
    """A module that leaves a file when it is imported, and all files of the folder naming it."""
    code = f"open({str(ran)!r}, 'w').close()\n" + "".join(
        f"class {name}:\n    @classmethod\n    def from_pretrained(cls, *a, **k): return cls()\n"
        for name in ("EvilConfig", "EvilModel", "EvilTokenizer")
    )
    (folder / "evil.py").write_text(code)
    auto_map = {
        "AutoConfig": "evil.EvilConfig",
        "AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"],
        "AutoModel": "evil.EvilModel",
        "AutoModelForCausalLM": "evil.EvilModel",
        "AutoModelForSeq2SeqLM": "evil.EvilModel",
        "AutoModelForImageTextToText": "evil.EvilModel",
    }
    for name in ("config", "tokenizer_config", "generation_config", "preprocessor_config"):
        path = folder / f"{name}.json"
        if path.is_file():
            tree = json.loads(path.read_text()) | {"auto_map": auto_map}
            for part in ("text_config", "vision_config", "qformer_config"):
                if part in tree:
                    tree[part] |= {"auto_map": auto_map}
            path.write_text(json.dumps(tree))


def copied(source: str, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def test_a_tokenizer_of_a_class_of_its_own_is_refused(foundation: FoundationConfig, tmp_path: Path, ran: Path) -> None:
    folder = copied(foundation.text_branch, tmp_path / "text_branch")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", None]}})
    )
    (folder / "tokenizer.json").unlink(missing_ok=True)
    bring_code(folder, ran)
    with pytest.raises(ValueError, match=r"names code of its own \(auto_map\), which is never run") as refused:
        read_tokenizer(folder)
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not ran.exists()


def test_a_foundation_that_names_code_in_every_file_loads_without_it(
    foundation: FoundationConfig, tmp_path: Path, ran: Path
) -> None:
    blip2, text = copied(foundation.blip2, tmp_path / "blip2"), copied(foundation.text_branch, tmp_path / "text_branch")
    for folder in (blip2, text):
        bring_code(folder, ran)
    config = tiny.model_config(FoundationConfig(str(blip2), str(text)), train_modalities=("image_region",))
    assert isinstance(build_model(config, 0).text, TextProcessor)
    assert not ran.exists()


@pytest.mark.parametrize("content", ["[" * 100_000, "{}", "3", '{"version": "1.0", "model": {}}', "\xff"])
def test_a_damaged_tokenizer_is_one_line(foundation: FoundationConfig, tmp_path: Path, content: str) -> None:
    folder = copied(foundation.text_branch, tmp_path / "text_branch")
    (folder / "tokenizer.json").write_text(content, encoding="latin-1")
    for vocabulary in ("vocab.txt", "vocab.json", "merges.txt"):
        (folder / vocabulary).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"cannot be read \(.*use a folder with the tokenizer files") as refused:
        read_tokenizer(folder)
    assert "\n" not in str(refused.value)
