"""``rb bench watching``: how much of a step's processor time goes into what only watches it, in the real loop of a real run on one process.

A run of some steps goes to a temporary folder. Measured, all by processor time of this one process, which other work on the machine hardly
lengthens:

    step             the engine's step, without beats
    beats            signs of progress (rb/core/heartbeat.py): their number in a step, from the file that a supervisor reads, times the cost of
                     one, which is measured right after the run with the samples of its last step
    between steps    everything that the loop does between two steps: counters of losses and bad steps, journal, bar, the agreement on a stop

The supervisor is another process: the drill `costs` measures it (docs/reliability.md). MLflow's copy is off.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from rb.core import dist, heartbeat
from rb.core.exit_codes import FINISHED
from rb.core.output import say, say_json
from rb.core.ranks_here import free_port
from rb.core.run_paths import open_run
from rb.core.stopping import StopRequest
from rb.training.loop import finish, prepare, start_tracking, take_steps

WARM_UP = 10  # steps that are not measured
BEATS = 20_000  # that are made to time one


@dataclass(frozen=True)
class WatchingCost:
    """Milliseconds of processor time of a step, but for ``beats_per_step``."""

    steps: int
    step_ms: float
    beats_per_step: float
    beats_ms: float
    between_ms: float

    @property
    def percent(self) -> float:
        """What watching adds to a step, in percent of it."""
        return 100 * (self.beats_ms + self.between_ms) / self.step_ms


class Clock:
    """Wraps an engine's ``train_step`` in a real loop: processor time within the calls and between them, beats of both."""

    def __init__(self, engine: Any, beats: Path) -> None:
        self.within = self.between = 0.0
        self.steps = 0
        self.ids: list[str] = []
        self._calls, self._step, self._beats = 0, engine.train_step, beats
        self._left, self._first_beat, self._last_beat = 0.0, 0, 0

    def train_step(self, *arguments: Any) -> Any:
        """In the place of the engine's."""
        began = time.process_time()
        result = self._step(*arguments)
        ended = time.process_time()
        self._calls += 1
        if self._calls > WARM_UP:
            self.steps += 1
            self.within += ended - began
            self.between += began - self._left
            self._last_beat = self._count()
        else:
            self._first_beat = self._count()
        self.ids = result.ids
        self._left = time.process_time()
        return result

    def costs(self, beat_s: float) -> WatchingCost:
        """Of the measured steps, where a beat takes so many seconds; those of a step are taken from its time."""
        beats = (self._last_beat - self._first_beat) / self.steps
        step = self.within / self.steps - beats * beat_s
        return WatchingCost(self.steps, 1e3 * step, beats, 1e3 * beats * beat_s, 1e3 * self.between / self.steps)

    def _count(self) -> int:
        beat = heartbeat.read(self._beats)
        assert beat is not None, "this process writes it"
        return beat.count


def measure(run_file: Path, steps: int, overrides: list[str]) -> WatchingCost:
    """Train, in this process, which must not have trained before."""
    with tempfile.TemporaryDirectory() as folder:
        beats = Path(folder) / "beats"
        heartbeat.make(beats)
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        os.environ.update(alone | {"MASTER_PORT": str(free_port()), heartbeat.VARIABLE: str(beats)})
        heartbeat.begin()
        stop = StopRequest()
        total = WARM_UP + steps
        own = [f"output_dir={folder}", "name=bench", f"train.max_steps={total}", f"train.checkpoint_every={total}"]
        config = open_run(run_file, [*overrides, *own, "tracking.mlflow=false", "validation.every=0"])
        dist.init()
        run = prepare(config, None)
        clock = Clock(run.engine, beats)
        run.engine.train_step = clock.train_step  # type: ignore[assignment,method-assign]
        with start_tracking(run, resumed=False) as tracker, run.saver:
            finish(run, tracker, take_steps(run, tracker, stop), stop)
        dist.shutdown()
        return clock.costs(_seconds_of_a_beat(clock.ids))


def _seconds_of_a_beat(ids: list[str]) -> float:
    """As a training makes them: two for every collective, one of which names it and the samples."""
    heartbeat.samples(ids)
    began = time.process_time()
    for _ in range(BEATS // 2):
        with heartbeat.waiting("all_reduce"):
            pass
    return (time.process_time() - began) / BEATS


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    if args.steps < 1:
        raise ValueError(f"--steps {args.steps}: must be at least 1")
    costs = measure(args.run_file, args.steps, args.overrides)
    if args.json:
        say_json(asdict(costs) | {"percent": costs.percent})
        return FINISHED
    say(f"{costs.steps} steps, processor time of one: {costs.step_ms:.1f} ms")
    say(f"beats: {costs.beats_per_step:.1f} a step, {costs.beats_ms:.3f} ms")
    say(f"counters, journal and all else between two steps: {costs.between_ms:.3f} ms")
    say(f"together {costs.percent:.2f} % of a step")
    say(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {platform.platform()}")
    return FINISHED
