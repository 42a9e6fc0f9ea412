"""``rb toy tasks``: sets of scenes are made once, asked, and scored beside chance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rb.core.config import FoundationConfig
from rb.data.index import ManifestReader
from rb.toy.tasks import _drawn
from tests.evaluation.test_task_scores import answers
from tests.support import exported
from tests.support.raw_data import cli_run


def test_every_task_has_its_scores_and_chance(
    foundation: FoundationConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = exported.make_run(tmp_path, foundation)
    words = ["toy", "tasks", "--checkpoint", str(run), "--out", str(tmp_path / "out"), "--scenes", "10", "--seeds", "1"]
    assert cli_run(*words, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    found = {(row["task"], row["who"], row["score"]): row["values"] for row in rows}
    for region_task in ("18 classes of regions", "retrieval of regions"):
        assert ManifestReader(tmp_path / "out" / "seed0" / region_task.replace(" ", "_")).num_examples == 10
    assert found["18 classes of regions", "chance", "top5"] == [5 / 18]
    for who in ("itc", "itm", "chance"):
        for task in ("retrieval of regions", "retrieval of clouds"):
            assert 0 <= found[task, who, "source_R1"][0] <= found[task, who, "source_R10"][0] == 1
    assert {who for task, who, _ in found if task == "questions about images"} == {"accuracy", "chance"}


def test_chance_of_answers() -> None:
    rows = answers()  # a number, yes or no, another: each kind has one answer
    assert _drawn(rows) == 1
    assert _drawn([*rows[1:2], rows[1].__class__(**{**vars(rows[1]), "references": ["no"] * 10})]) == 0.5
