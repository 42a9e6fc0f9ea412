"""`rb bench generate`: equal texts, fewer FLOPs, at any size."""

from __future__ import annotations

import json

import pytest

from tests.support.raw_data import cli_run


def test_ours_needs_fewer_flops_for_the_same_texts(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--run", "toy_opt", "--examples", "5", "--batch-size", "3", "decode.max_new_tokens=4")
    assert cli_run("bench", "generate", *words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["texts_that_differ"] == 0
    assert found["ours_gflop"] < 0.5 * found["plain_gflop"]
    assert cli_run("bench", "generate", *words) == 0
    assert "texts that differ: 0" in capsys.readouterr().out


def test_a_model_that_is_made_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_run("bench", "generate", "--size", "small_opt", "--examples", "3", "--batch-size", "3", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["max_new_tokens"], found["texts_that_differ"]) == (10, 0)
    assert found["ours_gflop"] < found["plain_gflop"]
