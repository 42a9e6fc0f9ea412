"""``rb bench saving``: how long a step waits where a checkpoint is saved, beside a plain step, the copy of the state, and a save that is waited for.

One process trains a made-up model of a given number of parameters (its forward pass is next to nothing, its optimizer step is the real one), or the
model of a run file, and saves to a temporary folder. All times are wall times, each the median of several:

    step              without a save, nothing being written
    copy              the state into CPU memory
    waits             what a step waits for its save: the copy, and starting the thread
    step beside       a step while the thread writes
    synchronous save  copy, journal's sync, writing, syncs and renames, waited for
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import count, repeat
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import nn

from rb.core import dist
from rb.core.batch import LossTerms
from rb.core.config import OptimConfig, TrainConfig
from rb.core.exit_codes import FINISHED
from rb.core.modality import IMAGE_REGION
from rb.core.output import say, say_json
from rb.core.ranks_here import free_port
from rb.core.run_paths import open_run
from rb.core.step_layout import StepLayout
from rb.tracking import Tracker
from rb.training.engine import Engine
from rb.training.loop import open_batches, prepare
from rb.training.run_folder import RunFolder
from rb.training.saving import Saver
from rb.training.validate import Validation

LARGEST = 1 << 20  # numbers in one tensor of the made-up model
WARM_UP = 3  # steps


@dataclass(frozen=True)
class SavingCosts:
    """Milliseconds of wall time, and bytes of the state."""

    bytes: int
    step_ms: float
    copy_ms: float
    waits_ms: float
    step_beside_ms: float
    synchronous_ms: float


class MadeUp(nn.Module):
    """So many parameters, each with a gradient."""

    def __init__(self, number: int) -> None:
        super().__init__()
        sizes = [LARGEST] * (number // LARGEST) + [number % LARGEST] * (number % LARGEST > 0)
        self.parts = nn.ParameterList(nn.Parameter(torch.randn(size)) for size in sizes)

    def shares(self, batches: list[Any], _: StepLayout) -> Iterator[tuple[Any, None]]:
        """Every micro-batch with its share."""
        return iter([(batch, None) for batch in batches])

    def forward(self, *_: object) -> LossTerms:
        """A loss on one number of each tensor."""
        total = torch.stack([part[0] for part in self.parts]).square().mean()
        return LossTerms({"itg": total}, total)


class NoValidation:
    """What a saver asks of a validation."""

    best = None

    def record(self) -> dict[str, Any]:
        """No best score, nothing owed."""
        return {}


def measure(saver: Saver, engine: Engine, tracker: Tracker, step: Callable[[int], object], saves: int) -> SavingCosts:
    """Step, copy and save in turn."""
    done, size = 0, 0
    plain: list[float] = []
    copy: list[float] = []
    waits: list[float] = []
    beside: list[float] = []
    synchronous: list[float] = []

    def timed(times: list[float], work: Callable[..., object], *arguments: Any) -> Any:
        began = time.perf_counter()
        result = work(*arguments)
        times.append(1e3 * (time.perf_counter() - began))
        return result

    for done in range(WARM_UP):
        step(done)
    for _ in range(saves):
        done += 1
        timed(plain, step, done)
        state = timed(copy, engine.gather_state)
        size = state.num_bytes
        del state
        timed(waits, saver.save, done, False, tracker)
        writing = True
        while writing:
            done += 1
            timed(beside, step, done)
            writing = saver.report() == 0
        assert saver.wait(), saver.missed
        done += 1
        timed(synchronous, lambda at: saver.save(at, False, tracker) and saver.wait(), done)
        assert not saver.missed, saver.missed
    return SavingCosts(size, *map(median, (plain, copy, waits, beside, synchronous)))


def of_made_up(number: int, saves: int, folder: Path) -> SavingCosts:
    """With a made-up model."""
    train = TrainConfig(global_batch_size=1, micro_batch_size=1, ds_config="ds_configs/zero2_cpu.json")
    model = MadeUp(number)
    engine = Engine(model, dict.fromkeys(dict(model.named_parameters()), (IMAGE_REGION,)), OptimConfig(), train)
    run_folder = RunFolder(folder / "run")
    run_folder.claim(new=True)
    tracker = Tracker(run_folder.path, mlflow=False)
    saver = Saver(run_folder, engine, cast(Validation, NoValidation()), {}, train)
    batches = repeat(SimpleNamespace(modality=IMAGE_REGION, ids=["a"], positions=[0]))
    with tracker, saver:
        return measure(
            saver, engine, tracker, lambda _: engine.train_step(IMAGE_REGION, 1e-4, cast(Any, batches)), saves
        )


def of_run(run_file: Path, saves: int, overrides: list[str], folder: Path) -> SavingCosts:
    """With the model and the data of a run file."""
    own = [f"output_dir={folder}", "name=run", "train.max_steps=100000", "validation.every=0", "tracking.mlflow=false"]
    run = prepare(open_run(run_file, [*overrides, *own]), None)
    batches, turns = open_batches(run), count()
    with Tracker(run.folder.path, mlflow=False) as tracker, run.saver:
        return measure(
            run.saver,
            run.engine,
            tracker,
            lambda _: run.engine.train_step(run.schedule.at(next(turns)).modality, 1e-4, batches),
            saves,
        )


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    if args.saves < 1 or args.parameters < 1:
        raise ValueError("--saves and --parameters: must be at least 1")
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(alone | {"MASTER_PORT": str(free_port())})
    dist.init()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        if args.run_file is None:
            costs = of_made_up(args.parameters, args.saves, Path(folder))
        else:
            costs = of_run(args.run_file, args.saves, args.overrides, Path(folder))
    dist.shutdown()
    if args.json:
        say_json(asdict(costs))
        return FINISHED
    say(f"state of {costs.bytes / 1e6:,.1f} MB, {args.saves} saves each way, medians of wall time")
    say(
        f"step {costs.step_ms:,.1f} ms; a step waits {costs.waits_ms:,.1f} ms for its save, the copy alone takes {costs.copy_ms:,.1f} ms"
    )
    say(
        f"step while a checkpoint is written {costs.step_beside_ms:,.1f} ms; synchronous save {costs.synchronous_ms:,.1f} ms"
    )
    say(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {platform.platform()}")
    return FINISHED
