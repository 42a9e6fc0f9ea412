"""Run files: ``base``, words as they are written, files that must not hang, and the project's own files with the values that they had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rb.core.config import RunConfig
from rb.core.run_file import load_run, merge, to_tree
from rb.core.run_yaml import read_yaml
from rb.tracking.tracker import flatten

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "launch" / "runs"
# Twenty lists of three aliases each: 3 ** 20 values when written out.
LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 21))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_base_is_relative_to_its_file_merges_and_may_have_a_base(tmp_path: Path) -> None:
    write(
        tmp_path / "bases" / "first.yaml",
        "optim: {lr: 3e-4, warmup_steps: 7, betas: [0.9, 0.98]}\nmodel: {loss_weights: {itc: 0.5}, prompt: a}\n"
        "data: {train: {image_region: [{manifest: a}, {manifest: b}], point_cloud: [{manifest: c}]}}\ntrain: {max_steps: 5}\n",
    )
    write(tmp_path / "bases" / "second.yaml", "base: first.yaml\noptim: {lr: 2e-4}\n")
    path = write(
        tmp_path / "run.yaml",
        "base: bases/second.yaml\noptim: {betas: [0.8, 0.9]}\nmodel: {loss_weights: {itm: 0.25}}\ntrain: {max_steps: null}\n"
        "data: {train: {image_region: [{manifest: d}], point_cloud: null, point_cloud_region: [{manifest: e}]}}\n",
    )
    run = load_run(path, ["optim.warmup_steps=9"])
    assert (run.optim.lr, run.optim.betas, run.optim.warmup_steps) == (2e-4, (0.8, 0.9), 9)
    assert (run.model.loss_weights["itc"], run.model.loss_weights["itm"], run.model.prompt) == (0.5, 0.25, "a")
    assert {m: [s.manifest for s in sources] for m, sources in run.data.train.items()} == {
        "image_region": ["d"],
        "point_cloud_region": ["e"],
    }
    assert run.train.max_steps is None
    assert "base" not in to_tree(run)


def test_a_base_may_be_one_of_the_projects_own_and_its_path_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(write(tmp_path / "mine.yaml", "base: toy_opt.yaml\nname: mine\n"))
    assert (run.name, run.model.lora.r) == ("mine", 16)
    monkeypatch.setenv("BASES", str(RUNS))
    assert load_run(write(tmp_path / "mine.yaml", "base: ${BASES}/toy_t5.yaml\n")).name == "toy_t5"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"run": "base: run.yaml"}, ["base leads back", "run.yaml -> run.yaml"]),
        ({"run": "base: b.yaml", "b": "base: run.yaml"}, ["run.yaml -> b.yaml -> run.yaml"]),
        ({"run": "base: none.yaml"}, ["base: none.yaml does not exist", "looked at"]),
        ({"run": "base: b.yaml", "b": "base: none.yaml"}, ["b.yaml: base: none.yaml does not exist"]),
        ({"run": "base: [a, b]"}, ["base", "one file"]),
        ({"run": "base: b.yaml", "b": "- 1"}, ["b.yaml", "mapping"]),
    ],
)
def test_a_base_that_cannot_be_read_is_one_line(tmp_path: Path, files: dict[str, str], words: list[str]) -> None:
    for name, text in files.items():
        write(tmp_path / f"{name}.yaml", text + "\n")
    with pytest.raises(ValueError) as error:
        load_run(tmp_path / "run.yaml")
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("text", ["v1 #3", "a: b", "[x]", "{a", "#1", "1.10", "no", "*a", "- x", "012", "1e3"])
def test_a_text_on_the_command_line_is_taken_as_it_is_written(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "run.yaml", "model: {prompt: x}\n")
    run = load_run(path, [f"name={text}", f"output_dir=/data/{text}", f"init_from={text}", f"model.prompt={text}"])
    assert (run.name, run.output_dir, run.init_from, run.model.prompt) == (text, f"/data/{text}", text, text)
    quoted = load_run(path, [f'name="{text}"', "init_from=null"])
    assert (quoted.name, quoted.init_from) == (text, None)


def test_merge_leaves_what_it_is_given_as_it_was() -> None:
    under = {"a": {"b": 1, "c": [1]}}
    assert merge(under, {"a": {"c": [2], "d": 3}}) == {"a": {"b": 1, "c": [2], "d": 3}}
    assert under == {"a": {"b": 1, "c": [1]}}


@pytest.mark.parametrize("word", ["2026-11-27", "012", "0x1f", "1_000", "1.50", "1:30", "1e3", "'12'", "yes", "true"])
def test_a_name_keeps_its_spelling(tmp_path: Path, word: str) -> None:
    assert load_run(write(tmp_path / "run.yaml", f"name: {word}\n")).name == word.strip("'")
    assert load_run(tmp_path / "run.yaml", ["name=x", f"name={word}"]).name == word.strip("'")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.max_steps=012", ["train.max_steps", "int", "'012'"]),
        ("train.max_steps=1.5", ["train.max_steps", "int", "'1.5'"]),
        ("train.max_steps='5'", ["train.max_steps", "int"]),
        ("optim.lr=yes", ["optim.lr", "float", "'yes'"]),
        ("optim.lr=nan", ["optim.lr", "finite"]),
        ("optim.lr=1e999", ["optim.lr", "finite"]),
        ("optim.lr=", ["optim.lr", "nothing"]),
        ("name=", ["name", "nothing"]),
        ("data.augment=1", ["data.augment", "bool"]),
        ("data.augment='true'", ["data.augment", "bool"]),
        ("model=5", ["model", "mapping"]),
        ("base=other.yaml", ["base", "name the file itself"]),
    ],
)
def test_a_word_that_does_not_fit_its_field_is_refused(tmp_path: Path, override: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        load_run(write(tmp_path / "run.yaml", "name: a\n"), [override])
    for word in words:
        assert word in str(error.value)


def test_words_become_what_their_field_is(tmp_path: Path) -> None:
    path = write(
        tmp_path / "run.yaml", "data: {augment: No}\noptim: {lr: 1e-3, grad_clip: 1}\ntrain: {epochs: 1_000}\n"
    )
    run = load_run(path, ["train.max_steps=~", "init_from=007"])
    assert (run.data.augment, run.optim.lr, run.optim.grad_clip, run.train.epochs) == (False, 1e-3, 1.0, 1000)
    assert (run.train.max_steps, run.init_from) == (None, "007")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "aliases"),
        ("name: " + "[" * 5000, "nested too deeply"),
        ("a: &a [*a]\n", "contains itself"),
        ("name: a\nname: b\n", "'name' stands twice"),
        ("name: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
    ],
    ids=["many aliases", "deep", "circle", "twice", "python"],
)
def test_a_file_that_would_hang_or_run_something_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_yaml(text)


def test_the_projects_run_files_have_the_values_they_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """``run_files.json``: what each file sets away from the defaults, as written before the files had bases; since then the demo has groups."""
    monkeypatch.setenv("RB_WEIGHTS", "/rb_weights")
    monkeypatch.setenv("RB_DATA", "/rb_data")
    monkeypatch.delenv("RB_DEMO", raising=False)
    default = flatten(to_tree(RunConfig()))

    def away(name: str) -> dict[str, str]:
        values = flatten(to_tree(load_run(RUNS / f"{name}.yaml")))
        return {key: value for key, value in values.items() if key not in default or default[key] != value}

    before = json.loads((ROOT / "tests" / "core" / "run_files.json").read_text())
    assert {name: away(name) for name in before} == before
    paper = {"name": "paper_opt_2.7b", "train.schedule": "sequential"}
    assert away("paper_opt_2.7b") == before["opt_2.7b"] | paper
    assert {path.stem for path in RUNS.glob("*.yaml")} == {*before, "full_size", "paper_opt_2.7b", "mined_opt_2.7b"}
