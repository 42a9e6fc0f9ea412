"""A mining job in one process, without Ray: every stage over one shard, then the next shard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rb.mining.inputs import InputShard
from rb.mining.stage import Stage, run_stage
from rb.mining.watch import Watch


def run_local(stages: Sequence[Stage], shards: Sequence[InputShard], out: Path, max_rejected: float = 1.0) -> int:
    """Run all units that are not done, and say how many were made. The caller holds ``alone_in(out)``.

    Raises:
        ValueError, CannotWriteError: as of ``run_stage``; finished units stay.
    """
    watch = Watch([stage.name for stage in stages], [shard.path.stat().st_size for shard in shards])
    units = 0
    for place, shard in enumerate(shards):
        before = None
        for stage in stages:
            done, made = run_stage(stage, shard, out, before, max_rejected)
            watch.unit(stage.name, place, done, made)
            units += made
            before = stage.name
    watch.say()
    return units
