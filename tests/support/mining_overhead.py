"""What Ray costs a mining job for each further unit and image, its start left out: ``python -m tests.support.mining_overhead FOLDER``.

One job on Ray and one in this process, over the same shards, by the same stage. Both count the processor time of all their processes from the
unit ``BEGIN`` to the last; the difference is Ray's. Processor time is the measure, since others may use the machine. A cluster at rest takes some too,
by the second and not by the image, so what it takes in that time is given by itself.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import psutil
import ray

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


def at_rest(seconds: float) -> float:
    """Processor seconds a second of a cluster that was started here and does nothing."""
    on_ray._connect(ray, [], None)
    time.sleep(seconds / 4)
    began = used()
    time.sleep(seconds)
    took = used() - began
    ray.shutdown()
    return took / seconds


class Sampled(Watch):
    """Notes processor time and time after each unit."""

    found: list[float]
    when: list[float]

    def unit(self, stage: str, place: int, done: Done, made: bool) -> None:
        """As of ``Watch``."""
        super().unit(stage, place, done, made)
        self.found.append(used())
        self.when.append(time.monotonic())


def measure(folder: Path) -> dict[str, float]:
    """Processor seconds of both drivers, and what Ray costs a unit and an image, in milliseconds."""
    shards = input_tars(folder / "in", SHARDS, IMAGES)
    local.Watch = on_ray.Watch = Sampled  # type: ignore[misc,attr-defined]
    seconds = {"Ray at rest, CPU s a second": at_rest(40)}
    for name in ("local", "ray"):
        Sampled.found, Sampled.when = [], []
        with alone_in(folder / name):
            if name == "local":
                local.run_local([Segments()], shards, folder / name)
            else:
                on_ray.run_on_ray([Segments()], shards, folder / name, {"masks": StageSize(1, 0.5)})
        seconds[name] = Sampled.found[-1] - Sampled.found[BEGIN]
        seconds[f"{name}, to unit {BEGIN}"] = Sampled.found[BEGIN]
        seconds[f"{name}, not of the processor"] = Sampled.when[-1] - Sampled.when[BEGIN]
    images = (SHARDS - 1 - BEGIN) * IMAGES
    more = seconds["ray"] - seconds["local"]
    resting = seconds["Ray at rest, CPU s a second"] * seconds["ray, not of the processor"]
    return {
        **{key: round(value, 3) for key, value in seconds.items()},
        "images": images,
        "Ray's ms an image": round(more / images * 1000, 2),
        "without what it takes at rest": round((more - resting) / images * 1000, 2),
    }


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
