"""What a stage of mining is, and how one runs over one shard: read the file of the stage before, make the new one, commit it.

Drivers (`local.py`, `on_ray.py`) decide where and when; the bytes come from here whoever calls.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from rb.core.files import file_sha256
from rb.mining.inputs import InputImage, InputShard
from rb.mining.record import ImageRecord, read_records, write_records
from rb.mining.work import Done, Made, run_unit


class Stage:
    """One step from images to regions with captions; held by one process (an actor), which gives it one shard after another.

    Attributes:
        name: of its folder in the output.
        config: all settings that its bytes depend on, as JSON values.
        model: digest of its model's files; ``none`` without a model.
    """

    name: str = ""

    def __init__(self, config: Mapping[str, Any], model: str = "none") -> None:
        self.config = dict(config)
        self.model = model
        self._started = False

    def start(self) -> None:
        """Load what the stage needs; called once, before the first shard that is to be made."""

    def run(self, shard: InputShard, before: Sequence[ImageRecord]) -> Made:
        """The stage's file of one shard. ``before``: of the stage before, to be changed in place; empty for the first stage."""
        raise NotImplementedError

    def make(self, shard: InputShard, before: Sequence[ImageRecord]) -> Made:
        """``run``, after ``start`` where that was not called yet."""
        if not self._started:
            self.start()
            self._started = True
        begin = time.perf_counter()
        made = self.run(shard, before)
        return replace(made, seconds=round(time.perf_counter() - begin, 3))


def stage_file(out: Path, stage: str, shard: int) -> Path:
    """``OUT/STAGE/00000.jsonl``: the one name of a stage's file for a shard."""
    return out / stage / f"{shard:05d}.jsonl"


def run_stage(
    stage: Stage,
    shard: InputShard,
    out: Path,
    before: str | None,
    max_rejected: float = 1.0,
    check: Callable[[], None] | None = None,
) -> tuple[Done, bool]:
    """Run ``stage`` over ``shard`` unless its file is there and made of the same; as of ``run_unit``.

    Args:
        before: name of the stage before; none for the first.
        max_rejected: as of ``run_unit``.
        check: called before the file is written; what it raises ends the unit.
    """

    def make() -> Made:
        made = stage.make(shard, [] if earlier is None else read_records(earlier))
        if check is not None:
            check()
        return made

    earlier = None if before is None else stage_file(out, before, shard.number)
    source = shard.digest if earlier is None else f"{shard.digest} {file_sha256(earlier)}"
    return run_unit(
        stage_file(out, stage.name, shard.number),
        source,
        stage.config,
        stage.model,
        max_rejected,
        make,
    )


def made_of(records: Sequence[ImageRecord], rejected: Sequence[tuple[str, str]] = ()) -> Made:
    """What a stage returns: its file's bytes, and how many images it took in."""
    regions = Counter(
        "kept" if region.dropped is None else f"{region.dropped.stage}: {region.dropped.reason}"
        for record in records
        for region in record.regions
    )
    return Made(write_records(records), len(records) + len(rejected), tuple(rejected), dict(sorted(regions.items())))


def with_pixels(shard: InputShard, records: Sequence[ImageRecord]) -> Iterator[tuple[ImageRecord, Image.Image]]:
    """Each record that has a region left, with its image, in order. The first stage has seen that all of them can be read."""
    wanted = {record.key: record for record in records if record.kept}
    for image in shard.images():
        if isinstance(image, InputImage) and (record := wanted.pop(image.key, None)) is not None:
            yield record, image.decode()
    assert not wanted, f"{shard.path}: lacks {len(wanted)} images that the stage before had; its digest says otherwise"
