"""Comparing prediction files: scores with paired intervals, what differs, what is refused; the paper's values."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval import compare as command
from rb.data.formats import Prediction, write_predictions
from rb.evaluation.comparing import changes, compare
from rb.evaluation.paper import read_paper
from rb.evaluation.scoring import score_file
from rb.pages.comparison_page import file_names
from tests.support.page_rules import check_page

TRUE = ["red cube", "left ball", "big green cone", "small ring", "blue ball on the right", "yellow cube"]
WORDS = TRUE * 4


def rows(wrong: range = range(0)) -> list[Prediction]:
    return [
        Prediction(f"s{i}#o", f"s{i}", "o", "image_region", "toy", "test", "no idea" if i in wrong else w, [w], None)
        for i, w in enumerate(WORDS)
    ]


def write(path: Path, predictions: list[Prediction], **meta: Any) -> Path:
    made = {"variant": "checkpoint", "checkpoint": None, "decoding": {"num_beams": 5}, "reference_policy": "all"}
    write_predictions(path, predictions, {**made, **meta})
    return path


def test_scores_intervals_and_the_examples_apart(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{n}.jsonl", rows(range(n))) for n in (0, 6, 7)]
    found = compare(paths, use_java=False, examples=3)
    assert found == compare(paths, use_java=False, examples=3)
    best, worse, worst = found["files"]
    assert best["CIDEr"] > worse["CIDEr"] > worst["CIDEr"] > 0
    assert worse["difference"] == pytest.approx(worse["CIDEr"] - best["CIDEr"])
    low, high = worse["difference_interval"]
    assert low < worse["difference"] < high < 0
    assert best["interval"][0] <= best["CIDEr"] <= best["interval"][1]
    assert [one["predictions"][1] for one in worse["apart"]] == ["no idea"] * 3
    same = compare([paths[1], write(tmp_path / "copy.jsonl", rows(range(6)))], use_java=False)["files"][1]
    assert (same["difference"], same["difference_interval"], same["apart"]) == (0.0, [0.0, 0.0], [])


def test_pairing_makes_the_interval_narrow(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{n}.jsonl", rows(range(n))) for n in (12, 13)]
    other = compare(paths, use_java=False)["files"][1]
    paired, alone = (interval[1] - interval[0] for interval in (other["difference_interval"], other["interval"]))
    assert paired < alone / 2


REFUSED = {
    "examples": (rows()[1:], {}, "1 of the first file's 24 examples are missing"),
    "references": ([replace(rows()[0], references=["another"]), *rows()[1:]], {}, "such as 's0#o'"),
    "reference_policy": (rows(), {"reference_policy": "one"}, '"all" against "one"'),
    "decoding": (rows(), {"decoding": {"num_beams": 1}}, "num_beams: 5 against 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unequal_files_are_refused_until_allowed(name: str, tmp_path: Path, capsys) -> None:
    predictions, meta, words = REFUSED[name]
    files = [write(tmp_path / "a.jsonl", rows()), write(tmp_path / "b.jsonl", predictions, **meta)]
    call = [*map(str, files), "--no-java"]
    assert command.main(call) == 2
    said = capsys.readouterr()
    assert f"{name} differ: " in said.err
    assert words in said.err
    assert not said.out
    other = "decoding" if name != "decoding" else "examples"
    assert command.main([*call, "--allow", other]) == 2
    capsys.readouterr()
    assert command.main([*call, "--allow", name]) == 0
    assert f"ALLOWED DIFFERENCE, {name}: " in capsys.readouterr().out


def write_spice(path: Path, values: list[float]) -> None:
    """Scores of a file as `eval.score` leaves them, with these values of SPICE."""
    score_file(path, use_java=False, use_mlflow=False, metrics=("CIDEr",))
    examples = path.with_suffix(".metrics.examples.jsonl")
    lines = [json.loads(line) for line in examples.read_text().splitlines()]
    spice = {f"s{i}#o": value for i, value in enumerate(values)}
    examples.write_text("".join(json.dumps({**row, "SPICE": spice[row["id"]]}) + "\n" for row in lines))


def test_spice_is_taken_where_it_was_scored(tmp_path: Path, capsys) -> None:
    paths = [write(tmp_path / f"{n}.jsonl", rows(range(n))) for n in (0, 6, 7)]
    write_spice(paths[0], [0.5, 0.3] * 12)
    write_spice(paths[1], [0.25, 0.15] * 12)
    first, second, third = compare(paths, use_java=False)["files"]
    assert first["SPICE"]["value"] == pytest.approx(0.4)
    assert "difference" not in first["SPICE"]
    assert second["SPICE"]["difference"] == pytest.approx(-0.2)
    low, high = second["SPICE"]["difference_interval"]
    assert -0.25 <= low < -0.2 < high <= -0.15
    assert third["SPICE"] is None
    assert command.main([*map(str, paths), "--no-java"]) == 0
    assert "SPICE 20.0 [" in capsys.readouterr().out
    write(paths[1], rows(range(5)))  # predicted anew, not scored
    assert compare(paths, use_java=False)["files"][1]["SPICE"] is None


def test_run_folders_by_equal_names_with_their_configurations(tmp_path: Path, capsys) -> None:
    for name, rate in (("one", 1), ("two", 2)):
        run = tmp_path / name
        checkpoint = {"run": str(run), "name": "step_1", "step": 1}
        write(run / "predictions" / "regions.jsonl", rows(range(rate)), checkpoint=checkpoint)
        write(run / "predictions" / f"only_{name}.jsonl", rows())
        (run / "config.yaml").write_text(f"train: {{lr: {rate}, max_steps: 5}}\n")
    folders = [str(tmp_path / "one"), str(tmp_path / "two")]
    assert command.main([*folders, "--no-java", "--json", "--paper"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["sets"]) == {"regions"}
    changed = found["sets"]["regions"]["files"][1]["changes"]
    assert changed["config.train.lr"] == ["1", "2"]
    assert "config.train.max_steps" not in changed
    assert found["paper"] == read_paper()
    assert command.main([*folders, "--no-java", "--paper"]) == 0
    text = capsys.readouterr().out
    assert "config.train.lr: 1 -> 2" in text
    assert "paper: RegionBLIP, RefCOCO test, CIDEr  63.5  64.2  47.6  56.1" in text
    assert "Objaverse" not in text


def test_the_page_shows_scores_settings_and_the_papers_columns(tmp_path: Path, capsys) -> None:
    files = [write(tmp_path / f"{n}.jsonl", rows(range(n)), decoding={"num_beams": 5 - n // 7}) for n in (0, 6, 7)]
    write_spice(files[0], [0.5, 0.3] * 12)
    page = tmp_path / "new" / "page.html"
    call = [*map(str, files), "--no-java", "--allow", "decoding", "--html", str(page)]
    assert command.main([*call, "--json"]) == 0
    said = capsys.readouterr()
    assert str(page) in said.err
    one = json.loads(said.out)["sets"]["0"]["files"][1]
    text = page.read_text(encoding="utf-8")
    assert f"{100 * one['difference']:+.1f} (" in text
    assert "meta.decoding.num_beams" in text
    assert "Allowed difference, decoding" in text
    assert "40.0" in text  # SPICE of the first
    check_page(text)
    assert text.count('class="n best"') == 1  # of three CIDErs the highest; one SPICE alone is not the best
    assert text.count("<article") == 10  # five of each other file; nothing gained
    assert "does not name its data" in text
    assert "paper" not in text.split("</style>")[1].lower()
    assert command.main([*call, "--paper"]) == 0
    text = page.read_text(encoding="utf-8")
    check_page(text)
    assert "the paper: RegionBLIP, RefCOCO test" in text
    assert '<td class="n paper">63.5</td>' in text
    assert "not this comparison" in text


def test_short_names_for_columns() -> None:
    assert file_names([["/r/one/predictions/a.jsonl", "/r/two/predictions/a.jsonl"]]) == [["one", "two"]]
    assert file_names([["/r/one/predictions/a.jsonl", "/r/one/predictions/b.jsonl"]]) == [["a", "b"]]
    assert file_names([["/x/a.jsonl", "/y/a.jsonl"]]) == [["1: a", "2: a"]]


def test_what_cannot_be_compared(tmp_path: Path, capsys) -> None:
    one, empty = write(tmp_path / "a.jsonl", rows()), write(tmp_path / "empty.jsonl", [])
    (tmp_path / "run").mkdir()
    cases = {
        "at least two": [one],
        "is not there": [one, tmp_path / "none.jsonl"],
        "is a file beside folders": [one, tmp_path / "run"],
        "no predictions of one name": [tmp_path / "run", tmp_path],
        "no predictions in it": [one, empty],
    }
    for words, paths in cases.items():
        assert command.main([*map(str, paths), "--no-java"]) == 2
        assert words in capsys.readouterr().err
    apart = write(tmp_path / "apart.jsonl", [replace(r, id=f"x{r.id}", source_id=f"x{r.source_id}") for r in rows()])
    assert command.main([str(one), str(apart), "--no-java", "--allow", "examples"]) == 2
    assert "no example in common" in capsys.readouterr().err


def test_changes_of_nested_settings() -> None:
    assert changes({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "d": [3]}}) == {
        "a.c": ("2", "(absent)"),
        "a.d": ("(absent)", "[3]"),
    }
