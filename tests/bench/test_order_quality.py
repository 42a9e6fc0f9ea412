"""`rb bench order`: figures of orders that are known, and the command on a set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rb.bench.order_quality import Shards, measure
from rb.core.modality import IMAGE, POINT_CLOUD
from rb.data.order import Arrangement
from tests.support.raw_data import cli_run
from tests.support.remedies import remedy
from tests.support.small_data import write_set


def test_the_full_order_is_a_random_one() -> None:
    """2,000 records of 3 samples: the chance that 60 draws meet no record twice is about exp(-60 * 59 / 2 * 2 / 5,999) = 0.554."""
    found = measure(IMAGE, [Shards.made_up(2000, 3, 100)], Arrangement(1, "full", 10, 4), 60, 10_000)
    assert found.batches_with_a_source_twice == pytest.approx(0.446, abs=0.15)
    assert found.relative_distance == pytest.approx(1, abs=0.03)
    assert found.seeks == pytest.approx(6000, abs=10)
    assert found.run_bytes == pytest.approx(100, abs=1)
    assert found.times_read > 20, "blocks are the wrong unit for a reader of the full order"


def test_blocks_are_read_once_each_and_groups_divide_the_sources_of_a_batch() -> None:
    sets = [Shards.made_up(1000, 4, 100), Shards.made_up(200, 4, 300)]
    single, grouped = (measure(IMAGE, sets, Arrangement(n, "blocks", 8, 5), 40, 10_000) for n in (1, 4))
    for found in (single, grouped):
        assert found.pieces == 1000 / 8 + 200 / 8
        assert found.times_read == pytest.approx(1)
    assert single.batches_with_a_source_twice == 1
    assert grouped.batches_with_a_source_twice == 0
    assert grouped.sources_a_batch == pytest.approx(10, abs=0.01)
    assert grouped.seeks < 1200 < 4000 < single.seeks
    whole_windows = measure(IMAGE, sets, Arrangement(4, "blocks", 8, 5), 40, 2000)
    assert whole_windows.times_read == pytest.approx(1, abs=0.15), "a part of an epoch stands for all of it"


def test_neighbours_in_one_block_are_near() -> None:
    found = measure(IMAGE, [Shards.made_up(1000, 1, 100)], Arrangement(1, "blocks", 10, 1), 10, 10_000)
    assert found.relative_distance < 0.15  # nine of ten neighbours are 11 / 3 records away, the tenth 1000 / 3


def test_the_command_reads_manifests_of_several_modalities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, modality in (("a", IMAGE), ("b", POINT_CLOUD), ("c", IMAGE)):
        write_set(tmp_path / name, modality, 7)
    folders = [str(tmp_path / name) for name in "abc"]
    assert cli_run("bench", "order", *folders, "--batch-size", "4", "--block-records", "2", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    shown = [(row["modality"], row["order"], row["group_by_source"]) for row in rows]
    assert shown == [(m, order, n) for m in (IMAGE, POINT_CLOUD) for n in (1, 4) for order in ("full", "blocks")]
    assert cli_run("bench", "order", *folders, "--batch-size", "4") == 0
    assert "image: 26 samples of 14 records" in capsys.readouterr().out


@remedy("the set has only {} samples; give a smaller one")
def test_a_batch_larger_than_the_set(tmp_path: Path):
    write_set(tmp_path / "set", IMAGE, 4)
    size = ["100"]
    return lambda: cli_run_or_raise(tmp_path / "set", size[0]), lambda _: size.__setitem__(0, "4")


def cli_run_or_raise(folder: Path, batch_size: str) -> None:
    measure(IMAGE, [Shards.of_manifest(folder)[1]], Arrangement(), int(batch_size), 1000)
