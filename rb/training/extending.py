"""``rb extend``: a run that ended, or stopped, goes on for more epochs or steps than it was begun with.

Parameters and moments are those of the newest checkpoint, the order of data is that of a run that was longer from the start; what the rate
does has to be said. Only `config.yaml` is changed, at once: the length, and a row in `optim.extensions` that says who did it and when. The
configuration of before stays beside it.
"""

from __future__ import annotations

import dataclasses
import shutil
import socket
import time
from pathlib import Path

from rb.checkpoints import checkpoint
from rb.core.config import Extension, OptimConfig, RunConfig, TrainConfig
from rb.core.files import whole_file, write_whole
from rb.core.locks import FileLock
from rb.core.run_file import dump_run, load_run
from rb.core.run_layout import RUN_CONFIG, TRAINING_LOCK, earlier_config
from rb.data.order import Arrangement
from rb.data.pipeline import open_training_data
from rb.tracking.client_tags import user_name
from rb.training.optim import rate_at
from rb.training.run_folder import saved_run
from rb.training.schedule import Schedule


def length_of(train: TrainConfig, optim: OptimConfig, schedule: Schedule) -> int:
    """Steps of a run.

    Raises:
        ValueError: it was made longer, and its length is not the one of the last extension.
    """
    steps = train.max_steps or schedule.total_steps(train.epochs)
    recorded = optim.extensions[-1].new_steps if optim.extensions else steps
    if steps != recorded:
        raise ValueError(
            f"train.max_steps or train.epochs: make {steps:,} steps, but the run was extended to {recorded:,} (optim.extensions); leave "
            "both out, or make the run longer with rb extend"
        )
    return steps


def extend(run_dir: Path, rate: str, steps: int | None = None, epochs: int | None = None) -> Extension:
    """Make the run in a folder longer.

    Args:
        run_dir: the run folder; nobody trains in it.
        rate: what the rate does: `keep`, `stretch` or `restart`.
        steps: length of the run from now on; or
        epochs: the same in epochs.

    Raises:
        ValueError: no run there, another training is in it, its data are gone, or it would not become longer.
    """
    found_paths = saved_run(run_dir, [])
    with _claimed(run_dir):
        schedule = _schedule(found_paths)
        config = load_run(run_dir / RUN_CONFIG)
        old = length_of(config.train, config.optim, schedule)
        train = dataclasses.replace(config.train, max_steps=steps, epochs=epochs or config.train.epochs)
        new = train.max_steps or schedule.total_steps(train.epochs)
        if new <= old:
            raise ValueError(
                f"{run_dir}: has {old:,} steps ({schedule.epochs_after(old):.4g} epochs), which {new:,} steps do not make longer; "
                f"say how long it is in the end, such as --steps {2 * old}"
            )
        found = checkpoint.find(run_dir)
        done = found.step if found else 0
        extension = Extension(rate, done, old, new, f"{user_name()}@{socket.gethostname()}", time.strftime("%FT%T%z"))
        extensions = (*config.optim.extensions, extension)
        longer = dataclasses.replace(
            config, train=train, optim=dataclasses.replace(config.optim, extensions=extensions)
        )
        with whole_file(run_dir / earlier_config(len(extensions))) as copy:
            shutil.copyfile(run_dir / RUN_CONFIG, copy)
        write_whole(run_dir / RUN_CONFIG, dump_run(longer))
    return extension


def describe(run_dir: Path, extension: Extension, config: RunConfig) -> str:
    """What was done, and the rates around it, for people to read."""
    start, end = extension.from_step, extension.new_steps
    shown = sorted({start, extension.old_steps, (extension.old_steps + end) // 2, end - 1})
    if start:
        shown.insert(0, start - 1)
    rates = ", ".join(f"{rate_at(step, config.optim, end):.3g} at step {step + 1:,}" for step in shown)
    return (
        f"{run_dir}: {extension.old_steps:,} -> {end:,} steps, {start:,} of them made\n"
        f"rate ({extension.rate}): {rates}\n"
        f"go on with rb train --resume {run_dir}"
    )


def _schedule(config: RunConfig) -> Schedule:
    """The schedule that the run's data make; only manifests are read."""
    data = open_training_data(config.data.train, config.seed, Arrangement.of(config.data))
    samples = {modality: len(data[modality].stream) for modality in config.train.in_order(data)}
    return Schedule(config.train.schedule, samples, config.train.global_batch_size, config.seed)


def _claimed(run_dir: Path) -> FileLock:
    lock = FileLock(run_dir / TRAINING_LOCK)
    if not lock.acquire():
        raise ValueError(
            f"{run_dir}: a training is in this run folder ({lock.owner()}); stop it first, or wait for its end"
        )
    return lock
