"""A prediction job that is killed goes on behind its last finished chunk, and writes the bytes of one that nobody stopped."""

from __future__ import annotations

import random
import signal
import sys
import time
from pathlib import Path

import pytest

from rb.cli import main
from rb.core.config import FoundationConfig
from rb.core.modality import IMAGE_REGION
from rb.inference import predicting
from rb.inference.__main__ import main as rank_main
from tests.support import exported
from tests.support.processes import finish, start_function_ranks
from tests.support.small_data import write_set
from tests.support.unfinished_prediction import predict_without_writing

NAME = "said.jsonl"


@pytest.fixture(scope="module")
def world(foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, and a set of 24 regions."""
    folder = tmp_path_factory.mktemp("chunks")
    exported.make_run(folder, foundation)
    write_set(folder / "shards", IMAGE_REGION, 16)
    return folder


def words(world: Path, out: Path, *more: str) -> list[str]:
    job = ["--checkpoint", str(world / "tiny"), "--data", str(world / "shards"), "--modality", IMAGE_REGION]
    return [*job, "--out", str(out), "--batch-size", "2", *more]


def rank(arguments: list[str]) -> None:
    """One rank; a chunk is one batch."""
    predicting.CHUNK_BATCHES = 1
    sys.argv = ["rb predict", *arguments]
    assert rank_main() == 0


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.dist
def test_killed_at_random_moments_it_writes_the_same_bytes(world: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    finish(*start_function_ranks(2, rank, words(world, tmp_path / "whole" / NAME)))
    out = tmp_path / "killed" / NAME
    out.parent.mkdir()
    chunks, draw = out.with_name(f".{NAME}.unfinished"), random.Random(7)
    for found in (1, 4, 8):
        ranks = start_function_ranks(2, rank, words(world, out))
        while len(list(chunks.glob("*_chunk*.jsonl"))) < found and all(one.poll() is None for one in ranks):
            time.sleep(0.002)
        time.sleep(draw.random() * 0.03)
        for one in ranks:
            one.send(signal.SIGKILL)
            one.wait()
        assert len(list(chunks.glob("*_chunk*.jsonl"))) >= found or not out.exists()
    said = finish(*start_function_ranks(2, rank, words(world, out)))
    assert "goes on after" in said
    assert written(out.parent) == written(tmp_path / "whole")


def test_chunks_of_another_job_or_damaged_ones_are_made_again(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predicting, "CHUNK_BATCHES", 2)
    out, whole = tmp_path / NAME, tmp_path / "whole" / NAME
    whole.parent.mkdir()
    assert main(["predict", *words(world, whole)]) == 0
    chunks = out.with_name(f".{NAME}.unfinished")
    predict_without_writing(*words(world, out))
    kept = sorted(chunks.glob("*_chunk*.jsonl"))
    assert len(kept) == 6
    kept[4].write_bytes(kept[4].read_bytes()[:-9])
    kept[2].write_bytes(kept[1].read_bytes())
    capsys.readouterr()
    assert main(["predict", *words(world, out)]) == 0
    assert "goes on after 8 of its 24 examples" in capsys.readouterr().err
    assert (out.read_bytes(), chunks.exists()) == (whole.read_bytes(), False)
    predict_without_writing(*words(world, out, "decode.num_beams=1"))
    capsys.readouterr()
    assert main(["predict", *words(world, out)]) == 0
    said = capsys.readouterr().err
    assert "was begun by another job" in said
    assert "goes on" not in said
    assert out.read_bytes() == whole.read_bytes()
