"""A set of millions of samples in which only the index is real: shards are files of holes. And what a process needs to open it."""

from __future__ import annotations

import json
import time
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np

from rb.core.files import file_sha256
from rb.core.modality import POINT_CLOUD
from rb.data.formats import IndexEntry, Manifest, ShardEntry
from rb.data.index import _HEADER, _MAGIC, _RECORDS, _SAMPLES, Index, ManifestReader
from rb.data.order import Arrangement, Stream

NUM_SAMPLES, LARGEST_BYTES = 10_800_000, 200_000_000  # of the drill; what opening such an index may need
RECORD_BYTES, SHARD_RECORDS = 98_304, 20_000


def write_large_set(folder: Path, num_samples: int, captions: int) -> Path:
    """``num_samples`` of records of ``captions`` each; returns the manifest's path."""
    num_records = -(-num_samples // captions)
    num_shards = -(-num_records // SHARD_RECORDS)
    numbers = np.arange(num_records, dtype=np.uint64)
    records = np.zeros(num_records, _RECORDS)
    records["shard"], place = np.divmod(numbers, np.uint64(SHARD_RECORDS))
    records["offset"], records["length"] = place * np.uint64(RECORD_BYTES), RECORD_BYTES
    records["id_end"] = (numbers + np.uint64(1)) * np.uint64(12)
    samples = np.zeros(num_samples, _SAMPLES)
    samples["record"], samples["caption"] = np.divmod(np.arange(num_samples), captions)
    samples["object"] = -1
    ids_bytes = 12 * num_records
    folder.mkdir(parents=True)
    with (folder / "index.bin").open("wb") as file:
        file.write(_HEADER.pack(_MAGIC, num_shards, num_records, num_samples, ids_bytes))
        records.tofile(file)
        samples.tofile(file)
        np.char.zfill(numbers.astype("S12"), 12).tofile(file)
    shards = []
    for i in range(num_shards):
        name = f"large-{i:06d}.tar"
        count = min(SHARD_RECORDS, num_records - i * SHARD_RECORDS)
        with (folder / name).open("wb") as file:
            file.truncate(count * RECORD_BYTES)
        shards.append(ShardEntry(name, count * RECORD_BYTES, "0" * 64, count))
    index = IndexEntry("index.bin", (folder / "index.bin").stat().st_size, file_sha256(folder / "index.bin"))
    counts = {"records": num_records, "objects": 0, "samples": num_samples}
    path = folder / "manifest.json"
    path.write_bytes(Manifest(1, "large", POINT_CLOUD, "train", counts, {}, shards, index).to_json())
    return path


def stream_of(reader: ManifestReader, arrangement: Arrangement) -> Stream:
    """As training makes it."""
    groups = [arrangement.groups(reader.index.samples["record"])] if arrangement.needs_groups else []
    return Stream(POINT_CLOUD, [len(reader)], [1], 0, arrangement, groups)


def peak_bytes(path: Path, arrangement: Arrangement) -> int:
    """Most memory that Python and numpy hold at a time while the index is opened, verified and looked up; mapped files are not in it."""
    reader = ManifestReader(path, verify=False)
    tracemalloc.start()
    Index.open(path, reader.manifest, verify=True)
    stream = stream_of(reader, arrangement)
    stream.locate(len(stream) // 2)
    assert reader.num_examples
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def own_memory() -> int:
    """Bytes of this process that are no pages of files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon in /proc/self/status")


def measure(path: Path, verify: bool, arrangement: Arrangement, out: Path) -> None:
    """CPU seconds of opening, of the first look-up of an epoch, and of counting the examples; growth of this process's own memory."""
    Arrangement(2).groups(np.zeros(2, np.uint32))  # what is loaded once
    before, times = own_memory(), [time.process_time()]
    reader = ManifestReader(path, verify)
    stream = stream_of(reader, arrangement)
    times.append(time.process_time())
    stream.locate(len(stream) // 2)
    times.append(time.process_time())
    assert reader.num_examples
    times.append(time.process_time())
    seconds = [round(b - a, 3) for a, b in pairwise(times)]
    out.write_text(
        json.dumps({"seconds": seconds, "bytes": own_memory() - before, "peak": peak_bytes(path, arrangement)})
    )
