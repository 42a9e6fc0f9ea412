"""How far it is from the `rb predict` command to a caption: few calls of our own and few files, so that a reader finds the way."""

from __future__ import annotations

import inspect
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationMixin

import rb
from rb.cli import main
from rb.core.config import FoundationConfig
from rb.core.modality import IMAGE_REGION
from rb.model.weights import readers
from tests.support import exported
from tests.support.small_data import write_set

OWN = Path(rb.__file__).parent
MOST_CALLS = 12
MOST_RETURNS = 2


def own_calls() -> list[str]:
    """Our functions that are being called now, the outermost first: ``file:function``."""
    frames = [(Path(frame.filename), frame.function) for frame in inspect.stack()]
    return [f"{path.relative_to(OWN)}:{name}" for path, name in reversed(frames) if path.is_relative_to(OWN)]


def files_and_returns(road: list[str]) -> tuple[int, int]:
    """How many files a road goes through, and how often it comes back into one that it had left."""
    files = [call.partition(":")[0] for call in road]
    changes = [files[0], *(now for before, now in pairwise(files) if now != before)]
    return len(set(files)), len(changes) - len(set(files))


def test_a_return_is_a_file_that_is_entered_again() -> None:
    assert files_and_returns(["a:f", "a:g", "b:f", "a:h", "c:f", "b:g"]) == (3, 2)


def test_few_own_calls_lead_from_the_command_to_the_weights_and_to_the_caption(
    foundation: FoundationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roads: dict[str, list[str]] = {}

    def noting(name: str, function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            roads.setdefault(name, own_calls())
            return function(*args, **options)

        return call

    monkeypatch.setattr(GenerationMixin, "generate", noting("caption", GenerationMixin.generate))
    monkeypatch.setattr(readers, "read_tensor_file", noting("weights", readers.read_tensor_file))
    exported.make_run(tmp_path, foundation)
    roads.clear()
    write_set(tmp_path / "shards", IMAGE_REGION, 2)
    command = ["predict", "--checkpoint", str(tmp_path / "tiny"), "--data", str(tmp_path / "shards")]
    assert main([*command, "--modality", IMAGE_REGION, "--out", str(tmp_path / "p.jsonl")]) == 0
    assert roads.keys() == {"caption", "weights"}
    for road in roads.values():
        assert road[0] == "cli.py:main"
        assert len(road) <= MOST_CALLS, road
        assert files_and_returns(road)[1] <= MOST_RETURNS, road
