"""What the messages of pages advise helps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rb.core.modality import IMAGE_REGION
from rb.data.predictions import predictions_meta_path
from rb.pages.report import build_report
from rb.pages.show_data import show_data
from tests.support.remedies import Said, covers, remedy, typed
from tests.support.small_data import write_set


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished / "run", tmp_path / "run")


@remedy("{}: no {}, {}/ or {}/ in it; give a run folder")
def test_a_report_of_another_folder(run: Path):
    folder = [run.parent]
    return lambda: bool(build_report(folder[0]) is None), lambda _: folder.append(folder.pop() / "run")


@remedy(
    "No predictions yet: rb predict --checkpoint {} --data MANIFEST --modality MODALITY --out {}/predictions/NAME.jsonl"
)
def test_a_report_without_predictions(run: Path, tmp_path: Path):
    """The page says it; the command on it makes them."""
    write_set(tmp_path / "set", IMAGE_REGION, 2)
    values = {"MANIFEST": str(tmp_path / "set"), "MODALITY": IMAGE_REGION}

    def follow(said: Said) -> None:
        words = said.found(r"No predictions yet: rb (predict .*?/predictions/NAME\.jsonl)").split()
        assert "captions in" in typed(*(values.get(word, word) for word in words))

    return lambda: build_report(run).read_text(), follow


@remedy("its meta file holds another variant or checkpoint than this version writes; predict again")
def test_predictions_of_another_version(run: Path, tmp_path: Path):
    write_set(tmp_path / "set", IMAGE_REGION, 2)
    out = run / "predictions/a.jsonl"
    words = ["predict", "--checkpoint", run, "--data", tmp_path / "set", "--modality", IMAGE_REGION, "--out", out]
    typed(*words)
    meta = predictions_meta_path(out)
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"variant": "sideways"}))
    return lambda: build_report(run).read_text(), lambda _: typed(*words)


@remedy("is no folder; make it first")
def test_a_page_in_a_folder_that_is_not_there(tmp_path: Path):
    write_set(tmp_path / "set", IMAGE_REGION, 2)
    out = tmp_path / "pages/a.html"
    return lambda: show_data(tmp_path / "set", out), lambda said: Path(said.found(r"html: (\S+) is no folder")).mkdir()


# Where a page was written; tests/pages/test_report_browser.py opens them in a browser.
covers(["{}: {} examples, open it in a browser", "{}: {} MB, open it in a browser"])
