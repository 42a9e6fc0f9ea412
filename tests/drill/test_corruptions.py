"""600 damaged shards on a disk, and 90 in an S3 store: every one is noticed before use, and every other record is read as it was."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.support.corruptions import KINDS, forget, in_store, on_disk, undetected
from tests.support.stores import S3, reading_from
from tests.support.trials import Figures


@pytest.mark.parametrize("kind", KINDS)
def test_on_disk(tmp_path: Path, figures: Figures, kind: str) -> None:
    place, draw = on_disk(tmp_path), random.Random(f"disk {kind}")
    wrong = [problem for _ in range(200) for problem in undetected(place, kind, draw)]
    figures["undetected of 200"] = len(wrong)
    assert wrong == []


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_store(tmp_path: Path, s3: S3, figures: Figures, kind: str) -> None:
    place, draw = in_store(tmp_path, s3), random.Random(f"store {kind}")
    with reading_from(s3.port, tmp_path / "cache"):
        wrong = [
            problem for _ in range(30) for problem in undetected(place, kind, draw, lambda: forget(tmp_path / "cache"))
        ]
    figures["undetected of 30"] = len(wrong)
    assert wrong == []
