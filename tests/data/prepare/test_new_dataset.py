"""A new data set is one file and one row of ``DATASETS``: the converter of docs/extending.md, by the real command."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rb import cli as rb_cli
from rb.data.formats import read_rejected
from rb.data.index import ManifestReader
from rb.data.prepare import DATASETS, Dataset
from tests.support import region_csv
from tests.support.small_data import HEIGHT, WIDTH, image_bytes

ROWS = """a.png,1,2,9,8,a red cube
a.png,3,3,12,10,"a ball, green"
b.png,0,0,5,5,a cone
b.png,4,4,99,9,outside
b.png,4,4,9,9,...
gone.png,0,0,5,5,nothing to see
../a.png,0,0,5,5,outside the folder
a.png,1,2,wide
"""


@pytest.fixture
def rb(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], int]:
    """The command line as it is when the row stands in the file: the list of commands is made when ``rb/cli.py`` is read."""
    row = Dataset("Regions of images from a CSV file", "tests.support.region_csv")
    monkeypatch.setitem(DATASETS, region_csv.NAME, row)
    spec = importlib.util.spec_from_file_location("cli_with_the_row", rb_cli.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module.main


def test_a_new_data_set_is_one_file_and_one_row(rb, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    (raw / "images").mkdir(parents=True)
    (raw / "regions.csv").write_text(ROWS)
    for i, name in enumerate(("a.png", "b.png")):
        (raw / "images" / name).write_bytes(image_bytes(i))
    command = ["prepare", "region-csv", "--raw", str(raw), "--out", str(out), "--split", "val"]
    assert rb(command) == 0
    assert "regions read" in capsys.readouterr().out
    assert rb([*command, "--overwrite", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["unit"], answer["read"], answer["used"], answer["captions"]) == ("regions", 8, 3, 3)
    assert answer["rejected"]["unsafe_name"] == 1
    assert sum(answer["rejected"].values()) == 5
    assert answer["manifest"] == str(out / "manifest.json")

    reader = ManifestReader(out)
    assert reader.manifest.counts == {"records": 2, "objects": 3, "samples": 3}
    examples = [reader.example(i) for i in range(reader.num_examples)]
    assert [one.references for one in examples] == [("a red cube",), ("a ball, green",), ("a cone",)]
    assert examples[0].stored.size == (WIDTH, HEIGHT)
    assert examples[0].media == image_bytes(0)
    found = {(row.object_id, row.reason) for row in read_rejected(out / "rejected.jsonl")}
    assert found == {
        ("4", "box_outside_image"),
        ("5", "no_caption"),
        ("6", "image_missing"),
        ("7", "unsafe_name"),
        ("8", "malformed_row"),
    }
    assert sum(reader.manifest.rejected.values()) == 5  # 8 rows: 3 used, 5 listed with their reason


def test_what_is_missing_is_named(rb, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rb(["prepare", "region-csv", "--raw", str(tmp_path), "--out", str(tmp_path / "out")]) != 0
    assert "regions.csv: not found. The raw folder should look like this" in capsys.readouterr().err
