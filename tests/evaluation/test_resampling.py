"""Intervals and standard errors hold what they say where a source has several examples: coverage measured on simulated sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rb.data.predictions import Prediction, write_predictions
from rb.evaluation.comparing import compare
from rb.evaluation.comparison_text import format_comparison
from rb.evaluation.resampling import SourceBootstrap
from rb.pages.comparison_page import write_comparison

TRIALS = 2000
# Examples of each source.
SETS = {"20 x 15": [15] * 20, "100 x 3": [3] * 100, "300 x 1": [1] * 300, "unequal": [1, 2, 3, 4, 30] * 8}


def simulated(sizes: list[int], correlation: float, seed: int) -> tuple[list[str], NDArray[np.float64]]:
    """Sources of examples, and ``TRIALS`` sets of their scores [TRIALS, N]: mean 0, variance 1, this correlation within a source."""
    draw = np.random.default_rng(seed)
    place = np.repeat(np.arange(len(sizes)), sizes)
    common = draw.standard_normal((TRIALS, len(sizes)))[:, place]
    own = draw.standard_normal((TRIALS, len(place)))
    return [f"s{i}" for i in place], correlation**0.5 * common + (1 - correlation) ** 0.5 * own


def coverage(source_ids: list[str], values: NDArray[np.float64], truth: float = 0.0) -> float:
    bootstrap = SourceBootstrap(source_ids)
    intervals = [bootstrap.interval(drawn) for drawn in bootstrap.means(values)]
    return float(np.mean([one is not None and one[0] <= truth <= one[1] for one in intervals]))


@pytest.mark.parametrize("correlation", [0.1, 0.3])
@pytest.mark.parametrize("name", SETS)
def test_a_95_percent_interval_covers_95_percent(name: str, correlation: float) -> None:
    sizes = SETS[name]
    assert coverage(*simulated(sizes, correlation, seed=len(sizes))) == pytest.approx(0.95, abs=0.025)
    if name == "20 x 15":  # drawing examples instead, as was done before: far below
        _, values = simulated(sizes, correlation, seed=len(sizes))
        alone = coverage([str(i) for i in range(values.shape[1])], values)
        assert alone < {0.1: 0.87, 0.3: 0.70}[correlation]


def test_differences_of_two_files_and_standard_errors_are_right_too() -> None:
    source_ids, first = simulated([15] * 20, 0.3, seed=1)
    _, change = simulated([15] * 20, 0.3, seed=2)
    bootstrap, asked = SourceBootstrap(source_ids), np.arange(300) % 3 > 0
    drawn = bootstrap.means(first + change + 1.0) - bootstrap.means(first)
    intervals = np.array([bootstrap.interval(one) for one in drawn])
    assert np.mean((intervals[:, 0] <= 1) & (intervals[:, 1] >= 1)) == pytest.approx(0.95, abs=0.02)
    errors = [bootstrap.error(one, asked) or 0.0 for one in bootstrap.means(first, asked)]
    assert np.mean(errors) == pytest.approx(first[:, asked].mean(axis=1).std(), rel=0.06)


def write(path: Path, regions: int, sources: int = 24, wrong: int = 6) -> Path:
    """Regions of which all of one source are captioned alike: they say no more than one."""
    words = ["red cube", "left ball", "big green cone", "small ring", "blue ball on the right", "yellow cube"]
    rows = [
        Prediction(
            f"s{i}#{k}", f"s{i}", str(k), "image_region", "toy", "test", "no idea" if i < wrong else text, [text], None
        )
        for i in range(sources)
        for text in [words[i % len(words)]]
        for k in range(regions)
    ]
    write_predictions(path, rows, {"variant": "checkpoint", "checkpoint": None})
    return path


def test_equal_regions_of_a_source_make_no_interval_narrower(tmp_path: Path) -> None:
    widths = []
    for regions in (1, 15):
        files = [write(tmp_path / f"{regions}_{wrong}.jsonl", regions, wrong=wrong) for wrong in (0, 6)]
        found = compare(files, use_java=False)
        assert (found["num_examples"], found["num_sources"]) == (24 * regions, 24)
        one = found["files"][1]
        widths.append([one[key][1] - one[key][0] for key in ("interval", "difference_interval")])
    assert widths[1] == pytest.approx(widths[0], rel=0.02)


def test_one_source_has_no_interval_in_text_and_page(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{wrong}.jsonl", 6, sources=1, wrong=wrong) for wrong in (0, 1)]
    found = compare(files, use_java=False)
    assert [one["interval"] for one in found["files"]] == [None, None]
    assert found["files"][1]["difference_interval"] is None
    assert "6 examples of 1 source," in format_comparison("regions", found)
    page = write_comparison(tmp_path / "page.html", {"regions": found}, paper=False).read_text(encoding="utf-8")
    assert "with 95 % intervals" not in page
