"""``rb mine stats``: what a job made beside the paper's Table 3, and what every stage took, kept, dropped and cost.

All of it comes from the records beside the stages' files, so it takes seconds also for ten thousand shards, and works while the job runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rb.core.output import aligned, figure
from rb.evaluation.paper import read_paper
from rb.mining.finish import FINISH, Finished, read_finished
from rb.mining.inputs import InputShard
from rb.mining.stage import stage_file
from rb.mining.work import Done, recorded

PAPER_SET = "RegionCap-10M"
PAPER_GPU_HOURS = 120 * 14 * 24  # 120 V100 for 14 days, as the paper says


@dataclass
class StageCount:
    """What one stage did in all its finished shards.

    Attributes:
        images: taken in; ``rejected`` of them by reason.
        kept: regions that are left behind the stage; ``dropped`` by it, by reason.
        seconds: of its processes, without starting models.
        gpus: of one process.
    """

    name: str
    gpus: float = 0.0
    shards: int = 0
    images: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def add(self, done: Done) -> None:
        """The record of one shard."""
        self.shards += 1
        self.images += done.taken
        self.rejected.update(done.rejected)
        self.kept += done.regions.get("kept", 0)
        for reason, count in done.regions.items():
            stage, _, why = reason.partition(": ")
            if stage == self.name:
                self.dropped[why] += count
        self.seconds += done.seconds

    @property
    def seconds_per_image(self) -> float:
        """Of one process; 0 before any image."""
        return self.seconds / self.images if self.images else 0.0

    def tree(self, images: float) -> dict[str, Any]:
        """The numbers, ready for JSON; hours are for so many ``images``."""
        hours = self.seconds_per_image * images / 3600
        return {
            "stage": self.name,
            "shards": self.shards,
            "images": self.images,
            "rejected": dict(sorted(self.rejected.items())),
            "regions in": self.kept + self.dropped.total(),
            "kept": self.kept,
            "dropped": dict(sorted(self.dropped.items())),
            "seconds an image": round(self.seconds_per_image, 4),
            "process hours": round(hours, 3),
            "GPU-hours": round(hours * self.gpus, 3),
        }


@dataclass(frozen=True)
class JobStats:
    """Counts of a job.

    Attributes:
        images: of all inputs, estimated by bytes from the shards that the first stage has done.
        finished: what is in the set; none before ``finish``.
    """

    stages: list[StageCount]
    shards: int
    images: float
    finished: Finished | None

    def tree(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        rows = [stage.tree(self.images) for stage in self.stages]
        return {
            "table 3": [_paper_row(), *([_own_row(self.finished)] if self.finished else [])],
            "input": {"shards": self.shards, "images": round(self.images)},
            "stages": rows,
            "finish": dict(self.finished.dropped) if self.finished else None,
            "projected": {
                "process hours": round(sum(row["process hours"] for row in rows), 3),
                "GPU-hours": round(sum(row["GPU-hours"] for row in rows), 3),
                "GPU-hours for the paper's images": self._for_the_paper(rows),
                "GPU-hours of the paper": PAPER_GPU_HOURS,
            },
        }

    def _for_the_paper(self, rows: Sequence[Mapping[str, Any]]) -> float | None:
        """GPU-hours of as many images in the set as the paper has; none before ``finish``, or without GPUs."""
        gpu_hours = sum(row["GPU-hours"] for row in rows)
        if not self.finished or not self.finished.images or not gpu_hours:
            return None
        return float(round(gpu_hours / self.finished.images * _paper_row()["images"], 1))


def job_stats(out: Path, stages: Sequence[str], shards: Sequence[InputShard], gpus: Mapping[str, float]) -> JobStats:
    """The counts of the job in ``out``, also while it runs.

    Args:
        stages: their names, in order.
        shards: all inputs.
        gpus: of a process, by stage; 0 where a stage has no entry.
    """
    found: list[StageCount] = []
    known = 0
    for stage in stages:
        count = StageCount(stage, gpus.get(stage, 0.0))
        for shard in shards:
            done = recorded(stage_file(out, stage, shard.number))
            if done is not None:
                count.add(done)
                known += shard.path.stat().st_size if not found else 0
        found.append(count)
    total = sum(shard.path.stat().st_size for shard in shards)
    images = found[0].images * total / known if known else 0.0
    return JobStats(found, len(shards), images, read_finished(out))


def _paper_row() -> dict[str, Any]:
    row = next(row for row in read_paper()["table3"] if row["dataset"] == PAPER_SET)
    return {
        "dataset": f"{PAPER_SET} (paper)",
        "images": row["images"],
        "regions": row["objects"],
        "words": row["words"],
        "regions an image": round(row["objects"] / row["images"], 2),
    }


def _own_row(done: Finished) -> dict[str, Any]:
    return {
        "dataset": "mined here",
        "images": done.images,
        "regions": done.regions,
        "words": round(done.words / done.regions, 2),
        "regions an image": round(done.regions / done.images, 2),
    }


def stats_text(stats: JobStats) -> str:
    """The counts for people."""
    tree = stats.tree()
    head = list(_paper_row())
    table = [head, *([_number(row[name]) for name in head] for row in tree["table 3"])]
    lines = [*aligned(table, 1), ""]
    if not stats.finished:
        lines += ["no set yet: its row follows when the job has ended", ""]
    names = ["stage", "shards", "images", "regions in", "kept", "seconds an image", "process hours", "GPU-hours"]
    rows = [[_number(row[name]) for name in names] for row in tree["stages"]]
    lines += aligned([names, *rows], 1)
    for row in tree["stages"]:
        for what in ("rejected", "dropped"):
            lines += [f"{row['stage']}, {what}: {_listed(row[what])}"] if row[what] else []
    if tree["finish"]:
        lines.append(f"{FINISH}, dropped: {_listed(tree['finish'])}")
    planned = tree["projected"]
    wanted = planned["GPU-hours for the paper's images"]
    lines += [
        "",
        f"hours are for the whole input: {stats.shards:,} shards, about {stats.images:,.0f} images; "
        f"in all {figure(planned['process hours'])} process hours, {figure(planned['GPU-hours'])} GPU-hours",
        f"the paper: {PAPER_GPU_HOURS:,} GPU-hours (120 V100, 14 days)"
        + ("" if wanted is None else f"; for as many images as its set has, at these rates: {wanted:,.0f}"),
    ]
    return "\n".join(lines)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)
