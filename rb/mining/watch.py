"""Progress of mining, for people: shards and images a second, how many regions each stage kept, and the time left."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from rb.core.output import note
from rb.core.verbosity import QUIET, verbosity
from rb.mining.work import Done

_EVERY_S = 30.0  # between two lines


class Watch:
    """What a job has done so far; a driver reports every unit.

    Args:
        stages: their names, in order.
        shards: bytes of each input shard: what is left is estimated by bytes.
        workers: processes at a time, by stage; none where one process runs all stages.
        clock: seconds.
    """

    def __init__(
        self,
        stages: Sequence[str],
        shards: Sequence[int],
        workers: Mapping[str, int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stages, self.sizes, self.workers = list(stages), list(shards), workers
        self._clock = clock
        self._begin = self._said = clock()
        self._bytes: Counter[str] = Counter()
        self._units: Counter[str] = Counter()
        self._made: Counter[str] = Counter()  # images that this job took through a stage
        self._made_bytes: Counter[str] = Counter()
        self._seconds: dict[str, float] = defaultdict(float)
        self._kept: Counter[str] = Counter()
        self._all: Counter[str] = Counter()

    def unit(self, stage: str, place: int, done: Done, made: bool) -> None:
        """A unit is finished: ``place`` of its shard in the list; ``made`` just now, or found. Says a line now and then."""
        self._units[stage] += 1
        self._bytes[stage] += self.sizes[place]
        self._kept[stage] += done.regions.get("kept", 0)
        self._all[stage] += done.regions.get("kept", 0)
        self._all[stage] += sum(count for reason, count in done.regions.items() if reason.startswith(f"{stage}: "))
        if made:
            self._made[stage] += done.taken
            self._made_bytes[stage] += self.sizes[place]
            self._seconds[stage] += done.seconds
        if self._clock() - self._said >= _EVERY_S:
            self.say()

    def say(self) -> None:
        """The line, now."""
        self._said = self._clock()
        if verbosity() != QUIET:
            note(self.line())

    def line(self) -> str:
        """``masks 3/8, 61 % kept; ... 12.3 images/s, 4 min left``."""
        parts = []
        for stage in self.stages:
            kept = f", {self._kept[stage] / self._all[stage]:.0%} kept" if self._all[stage] else ""
            parts.append(f"{stage} {self._units[stage]}/{len(self.sizes)}{kept}")
        speed = self._made[self.stages[-1]] / max(1e-9, self._clock() - self._begin)
        left = self.seconds_left()
        return f"{'; '.join(parts)}; {speed:.3g} images/s" + ("" if left is None else f", {_duration(left)} left")

    def seconds_left(self) -> float | None:
        """Of the slowest stage where stages run beside each other, else of all together; none before every stage with work left made a unit."""
        left = []
        for stage in self.stages:
            waiting = sum(self.sizes) - self._bytes[stage]
            if not waiting:
                continue
            if not self._made_bytes[stage]:
                return None
            work = self._seconds[stage] / self._made_bytes[stage] * waiting
            left.append(work / (self.workers[stage] if self.workers else 1))
        return max(left, default=0.0) if self.workers else sum(left)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
