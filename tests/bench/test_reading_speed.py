"""`rb bench data`: both readers make the same inputs of the sets that it makes; the command, with sets and without; a store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from webdataset import WebDataset

from rb.bench import reading_sets
from rb.bench.reading_speed import our_reader, transform_of, webdataset_readers
from rb.core.config import DataSource
from rb.core.modality import IMAGE
from rb.data.order import Arrangement
from rb.data.pipeline import open_training_data
from tests.support.raw_data import cli_run
from tests.support.small_data import write_set
from tests.support.stores import S3, reading_from

NUM_RECORDS = 3


@pytest.mark.parametrize("kind", reading_sets.KINDS, ids=lambda kind: kind.name)
def test_readers_make_the_same_inputs_of_every_kind(tmp_path: Path, kind: reading_sets.Kind) -> None:
    reading_sets.write(tmp_path / "set", kind, NUM_RECORDS)
    place = tmp_path / "set"
    data = open_training_data({kind.modality: [DataSource(str(place))]}, 0, Arrangement(99))[kind.modality]
    transform = transform_of(data, augment=False)
    ours = {}
    for group, start, _ in data.groups(range(NUM_RECORDS * kind.captions)):
        assert len(group) == kind.captions
        for sample in transform.training_samples(group, kind.modality, start):
            ours[sample.source_id] = sample.inputs
    (own,) = transform.of_source.values()
    shards = [str(path) for path in place.glob("*.tar")]
    for sample in WebDataset(shards, shardshuffle=False).decode("pilrgb"):
        record = sample["json"]
        boxes = [item["box"] for item in record["objects"]]
        theirs = own(sample["jpg"]) if "jpg" in sample else own(sample["points.npy"], boxes, "", ())[0]
        assert torch.equal(ours[record["source_id"]], theirs)
    readers = webdataset_readers(place, data.readers[0].manifest, transform, 2)
    readers.append(our_reader(data, transform, 99, kind.captions, 2))
    for reader in readers:
        reader.take_turn()
        assert (reader.turns[0].samples, reader.turns[0].sources) == (2 * kind.captions, 2), reader.name
        assert reader.undecoded[0].sources == 2


def test_the_command_reads_a_set_here_and_at_a_url(tmp_path: Path, s3: S3, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path / "set", IMAGE, 7)
    options = ["--sources", "4", "--rounds", "1", "--batch-size", "4", "--group-by-source", "2"]
    assert cli_run("bench", "data", str(tmp_path / "set"), *options, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["reader"], row["group_by_source"]) for row in rows] == [("webdataset", None), ("rb", 1), ("rb", 2)]
    assert all(row["samples_per_s"] > 0 and row["ratio"] > 0 and 0 < row["reading"] < 1 for row in rows)
    url = s3.upload(tmp_path / "set", "bench")
    with reading_from(s3.port, tmp_path / "cache"):
        assert cli_run("bench", "data", url, *options, "--order", "blocks") == 0
    shown = capsys.readouterr().out
    assert url in shown
    assert "order blocks" in shown
    assert not (tmp_path / "cache").exists(), "a cache of its own, empty in the beginning"
