"""Results of drills: rows that survive a kill, trials that are not repeated, and the page that is written from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import reliability_page
from tests.support.trials import Trials, read_rows


def run(trials: Trials, names: list[str], failing: str = "") -> list[str]:
    """Every trial that began."""
    begun = []
    for name in trials.left(names):
        begun.append(name)
        with trials.trial(name) as figures:
            figures["lost"] = len(begun)
            assert name != failing
    return begun


def test_a_drill_goes_on_where_it_was_ended(tmp_path: Path) -> None:
    first = Trials("part", tmp_path, "aaa")
    with pytest.raises(pytest.fail.Exception, match="1 trials failed:\n\ntwo: AssertionError"), first.all_of_them():
        assert run(first, ["one", "two", "three"], failing="two") == ["one", "two", "three"]
    again = Trials("part", tmp_path, "aaa")
    with again.all_of_them():
        assert run(again, ["one", "two", "three"]) == ["two"]
    assert again.summary() == "part: 3 of 3 trials passed (2 of them earlier)"
    assert again.skip_reason("one") == "passed at this commit"
    rows = read_rows(tmp_path / "part.json")
    assert [(row.name, row.passed, row.figures) for row in rows] == [
        ("one", True, {"lost": 1}),
        ("two", True, {"lost": 1}),
        ("three", True, {"lost": 3}),
    ]
    assert run(Trials("part", tmp_path, "bbb"), ["one"]) == ["one"]
    assert [(row.name, row.commit) for row in read_rows(tmp_path / "part.json")] == [("one", "bbb")]


def test_trials_that_were_not_reached_are_shown_as_not_run(tmp_path: Path) -> None:
    trials = Trials("part", tmp_path, "aaa")
    assert next(iter(trials.left(["one", "two", "three"]))) == "one"  # and then it is killed
    assert trials.summary() == "part: 0 of 3 trials passed, 3 not run"


def test_changes_that_are_not_committed_count_for_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        assert run(Trials("part", tmp_path, "aaa-dirty"), ["one"]) == ["one"]


def test_a_part_that_is_out_of_time_says_how_to_go_on(tmp_path: Path) -> None:
    late = Trials("part", tmp_path, "aaa", limit_s=-1)
    assert run(late, ["one", "two"]) == []
    assert [row.passed for row in read_rows(tmp_path / "part.json")] == [None, None]
    assert late.skip_reason("three") == "30 minutes are over; `make drill PART=part` goes on"
    assert late.summary() == f"part: 0 of 3 trials passed, 3 not run; {late.how_to_go_on()}"
    assert run(Trials("part", tmp_path, "aaa"), ["one", "two"]) == ["one", "two"]


def test_the_page_shows_new_results_and_keeps_the_others(tmp_path: Path) -> None:
    parts = {}
    for name in ("kills", "stops"):
        parts[name] = tmp_path / f"test_{name}.py"
        parts[name].write_text(f'"""What {name} do to ``rb train``."""\n')
    empty = reliability_page.page(parts, {}, "")
    assert "| [kills](#kills) | not run |" in empty
    assert "\n## stops\n\nWhat stops do to `rb train`.\n" in empty
    trials = Trials("kills", tmp_path, "aaa")
    run(trials, ["one", "two"], failing="two")
    first = reliability_page.page(parts, {"kills": read_rows(tmp_path / "kills.json")}, empty)
    assert "| [kills](#kills) | 1 of 2 | aaa | " in first
    said = "Of 2 trials 1 passed. Failed: two. Largest figures:\n\n- lost: 2\n"
    assert f"## kills\n\nWhat kills do to `rb train`.\n\n{said}\n## stops" in first
    assert reliability_page.page(parts, {}, first) == first
    without = [replace(row, figures={}) for row in read_rows(tmp_path / "kills.json")]
    second = reliability_page.page(parts, {"stops": without}, first)
    assert "## stops\n\nWhat stops do to `rb train`.\n\nOf 2 trials 1 passed. Failed: two.\n" in second
    assert said in second
    assert reliability_page.page(parts, {}, second) == second


def test_the_page_of_this_repository_has_every_part() -> None:
    """After a new part, or a new docstring: ``python -m tests.support.reliability_page``."""
    text = reliability_page.PAGE.read_text(encoding="utf-8")
    assert reliability_page.page(reliability_page.PARTS, {}, text) == text
