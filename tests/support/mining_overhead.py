"""What Ray costs a mining job for each further unit and image, its start left out: ``python -m tests.support.mining_overhead FOLDER``.

One job on Ray and one in this process, over the same shards, by the same stage. Both count the processor time of all their processes from the
unit ``BEGIN`` to the last; the difference is Ray's. Processor time is the measure, since others may use the machine.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import psutil

from rb.mining import local, on_ray
from rb.mining.settings import StageSize
from rb.mining.watch import Watch
from rb.mining.work import Done, alone_in
from tests.support.mined import Segments, input_tars

SHARDS, IMAGES = 60, 20
BEGIN = 10


def used() -> float:
    """Processor seconds of this process and all that it started and that live."""
    me = psutil.Process()
    seconds = 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        seconds += times.user + times.system
    return seconds


class Sampled(Watch):
    """Notes the processor time after each unit."""

    found: list[float]

    def unit(self, stage: str, place: int, done: Done, made: bool) -> None:
        """As of ``Watch``."""
        super().unit(stage, place, done, made)
        self.found.append(used())


def measure(folder: Path) -> dict[str, float]:
    """Processor seconds of both drivers, and what Ray costs a unit and an image, in milliseconds."""
    shards = input_tars(folder / "in", SHARDS, IMAGES)
    local.Watch = on_ray.Watch = Sampled  # type: ignore[misc,attr-defined]
    seconds = {}
    for name in ("local", "ray"):
        Sampled.found = []
        with alone_in(folder / name):
            if name == "local":
                local.run_local([Segments()], shards, folder / name)
            else:
                on_ray.run_on_ray([Segments()], shards, folder / name, {"masks": StageSize(1, 0.5)})
        seconds[name] = Sampled.found[-1] - Sampled.found[BEGIN]
        seconds[f"{name}, to unit {BEGIN}"] = Sampled.found[BEGIN]
    units = SHARDS - 1 - BEGIN
    more = (seconds["ray"] - seconds["local"]) / units * 1000
    return {
        **{key: round(value, 2) for key, value in seconds.items()},
        "units": units,
        "images": units * IMAGES,
        "Ray's ms a unit": round(more, 2),
        "Ray's ms an image": round(more / IMAGES, 3),
    }


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
