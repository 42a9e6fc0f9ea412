"""A mining job of any size whose stages are made up: records of all units, the last stage's files, and inputs of one small picture.

``python -m tests.support.simulated_mining make|measure FOLDER SHARDS``: makes it; counts, finishes and opens it, and prints what that took as JSON.
``... index FOLDER SHARDS``: what the set's index alone takes: all that ``finish`` holds for each image, but for its search for equal pictures.
"""

from __future__ import annotations

import io
import json
import resource
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rb.core.files import sha256
from rb.core.modality import IMAGE_REGION
from rb.data.formats import ObjectAnnotation, Record, ShardEntry
from rb.data.index import ManifestReader
from rb.data.shards import Collector
from rb.mining.finish import finish, read_finished
from rb.mining.inputs import find_inputs
from rb.mining.screen import SCREEN
from rb.mining.settings import FinishConfig
from rb.mining.stats import job_stats, stats_text
from rb.sources.pixels import AS_UPRIGHT

STAGES = ("masks", "caption", "name", "filter", "describe", SCREEN)
IMAGES = 566  # of a shard: 10,000 shards have the paper's 5.66 million images
REGIONS = 2  # kept, of an image; a third one is dropped
TWICE = 100  # every so manieth image looks as the one before


def make(folder: Path, shards: int) -> None:
    """Inputs in ``FOLDER/in``, the job in ``FOLDER/out``."""
    (folder / "in").mkdir(parents=True)
    for stage in STAGES:
        (folder / "out" / stage).mkdir(parents=True)
    picture = io.BytesIO()
    Image.new("RGB", (64, 48), (90, 120, 60)).save(picture, "PNG")
    counts = {"filter: not in the caption": IMAGES, "kept": REGIONS * IMAGES}
    for shard in range(shards):
        _write_tar(folder / "in" / f"{shard:05d}.tar", shard, picture.getvalue())
        text = _stage_file(shard)
        (folder / "out" / SCREEN / f"{shard:05d}.jsonl").write_bytes(text)
        done = {
            "config": "c",
            "model": "m",
            "source": "s",
            "output": sha256(text),
            "taken": IMAGES,
            "rejected": {},
            "regions": counts,
            "seconds": 5.5,
        }
        for stage in STAGES:
            (folder / "out" / stage / f"{shard:05d}.jsonl.done").write_text(json.dumps(done))


def _write_tar(path: Path, shard: int, picture: bytes) -> None:
    with path.open("wb") as file:
        padding = bytes(-len(picture) % tarfile.BLOCKSIZE)
        for number in range(IMAGES):
            member = tarfile.TarInfo(f"{shard:05d}{number:04d}.png")
            member.size = len(picture)
            file.write(member.tobuf(tarfile.USTAR_FORMAT) + picture + padding)
        file.write(bytes(2 * tarfile.BLOCKSIZE))


def _stage_file(shard: int) -> bytes:
    looks = np.random.default_rng(shard).integers(0, 256, (IMAGES, 32), dtype=np.uint8)
    looks[TWICE::TWICE] = looks[TWICE - 1 :: TWICE][: len(looks[TWICE::TWICE])]
    lines = []
    for number in range(IMAGES):
        line = _LINE.replace("<key>", f"in/{shard:05d}{number:04d}").replace("<number>", str(number))
        lines.append(line.replace("<look>", looks[number].tobytes().hex()))
    return "".join(lines).encode()


def _line() -> str:
    """A line of the last stage's file, in which <key>, <number> and <look> are to be filled in."""
    regions = [
        {
            "id": f"<key>:{i}",
            "box": [4.0 + i, 3.0, 40.0, 30.0],
            "rle": "1a0" * 20,
            "area": 700,
            "predicted_iou": 0.91,
            "stability": 0.97,
            "name": "a brown horse",
            "name_logprob": -0.8,
            "chunks": ["brown horse", "horse"],
            "similarity": 0.93,
            "text": "a brown horse number <number> standing in a wide green field",
            "refined": None,
            "dropped": None if i < REGIONS else {"stage": "filter", "reason": "not in the caption"},
        }
        for i in range(REGIONS + 1)
    ]
    record = {
        "key": "<key>",
        "width": 64,
        "height": 48,
        "alt": None,
        "caption": "a horse in a field",
        "proposals": {"made": 90},
        "regions": regions,
        "look": "<look>",
    }
    return json.dumps(record, separators=(",", ":")) + "\n"


_LINE = _line()


def measure(folder: Path) -> dict[str, Any]:
    """Seconds and the largest memory (of the process so far) of each step."""
    found: dict[str, Any] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.monotonic()
        result = work()
        found[f"{name}, s"] = round(time.monotonic() - began, 1)
        found[f"{name}, CPU s"] = round(time.process_time(), 1)
        found[f"{name}, memory MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        return result

    out = folder / "out"
    shards = timed("inputs", lambda: find_inputs([str(folder / "in")]))
    timed("stats", lambda: stats_text(job_stats(out, STAGES, shards, {})))
    timed("finish", lambda: finish(out, shards, SCREEN, FinishConfig()))

    def index() -> None:
        reader = ManifestReader(out / "shards")
        for number in np.linspace(0, len(reader) - 1, 100).astype(int).tolist():
            reader.sample(number)

    timed("index", index)
    done = read_finished(out)
    assert done is not None
    return {**found, "images": done.images, "regions": done.regions, "twice": sum(done.dropped.values())}


def measure_index(folder: Path, shards: int) -> dict[str, Any]:
    """Seconds and memory of the collector of a set's records with their index, and of opening it."""
    folder.mkdir(parents=True)
    began = time.process_time()
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    objects = [ObjectAnnotation(f"{i}", [4, 3, 40, 30], ["a brown horse in a green field"]) for i in range(REGIONS)]
    record, collector = Record("x", "mined", "train", 64, 48, [], objects), Collector(IMAGE_REGION, "train", AS_UPRIGHT)
    data = bytes(700)
    for shard in range(shards):
        for number in range(IMAGES):
            record = replace(record, source_id=f"in/{shard:05d}{number:04d}")
            collector.remember(record, "here")
            collector.builder.add(record, shard, number * 3072, data)
        entry = ShardEntry(f"mined-{shard:06d}.tar", IMAGES * 3072, "0" * 64, IMAGES)
        collector.shards.append(entry)
        with (folder / entry.file).open("wb") as file:
            file.truncate(entry.bytes)
    collector.finish(folder, "mined", {})
    built = round(time.process_time() - began, 1)
    samples = len(ManifestReader(folder))
    return {
        "records": shards * IMAGES,
        "samples": samples,
        "CPU s": built,
        "MB at the start": start // 1024,
        "memory MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


if __name__ == "__main__":
    what, where, *number = sys.argv[1:]
    if what == "make":
        make(Path(where), int(number[0]))
    elif what == "index":
        print(json.dumps(measure_index(Path(where), int(number[0]))))
    else:
        print(json.dumps(measure(Path(where))))
