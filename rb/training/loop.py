"""A training run from its configuration to its last checkpoint, to be read from top to bottom. `rb/train.py` is the entry.

Holds the order of things and nothing of how they are done: schedule, data, model, engine, tracking and checkpoints have their own files.
Every function here is called by all ranks; what only rank 0 does goes through `on_main` or the tracker.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rb.checkpoints import checkpoint
from rb.core import dist, heartbeat, progress
from rb.core.batch import Batch
from rb.core.config import RunConfig
from rb.core.exit_codes import ABORTED, CANNOT_WRITE, FINISHED, STOPPED
from rb.core.metric_names import EPOCH, RATE, TOTAL, TRAIN, parse_name, shown_values, value_name
from rb.core.patient import attempt
from rb.core.run_file import digest, dump_run, to_tree
from rb.core.run_layout import (
    RUN_CONFIG,
    RUN_END,
    RUN_ENVIRONMENT,
    RUN_TEXT_HEAD,
    RUN_WEIGHTS,
)
from rb.core.seeding import hash_key
from rb.core.stopping import StopRequest
from rb.data.order import Arrangement
from rb.data.pipeline import TrainingData, open_training_data
from rb.inference.cache_features import check_features
from rb.inference.cache_groups import uses_of_groups
from rb.inference.load import check_foundation, read_trained
from rb.model.compiling import check_can_compile
from rb.model.weights.build import Built, build_model
from rb.model.weights.recipes import HEAD_ROLE
from rb.tracking import Tracker
from rb.tracking.tracker import END_WAIT_S
from rb.training.agree import agreed, collective_timeout_s, on_main, together
from rb.training.bad_steps import BadSteps
from rb.training.batches import training_batches, training_transform
from rb.training.engine import Engine, choose_kernel, ds_settings
from rb.training.extending import length_of
from rb.training.metrics import Window
from rb.training.micro_batch import with_micro_batch
from rb.training.optim import rate_at
from rb.training.run_folder import STEP_LOG, RunFolder, check_continues, environment, identities_of, package_versions
from rb.training.saving import Saver
from rb.training.schedule import Schedule
from rb.training.validate import Validation, open_validation_data
from rb.training.validating import make_up, validate

log = logging.getLogger(__name__)
step_log = logging.getLogger(STEP_LOG)
ANOTHER = "another rank"  # asked to stop, not this one


@dataclass
class Run:
    """Everything a run consists of, ready for its first step."""

    asked: RunConfig
    """As it is written to the run folder, with ``auto`` where the machine decides."""
    config: RunConfig
    """As it runs here."""
    folder: RunFolder
    device: torch.device
    data: dict[str, TrainingData]
    schedule: Schedule
    total_steps: int
    start: int
    built: Built
    engine: Engine
    validation: Validation
    meta: dict[str, Any]
    saver: Saver
    done: int
    """Steps made so far."""


def prepare(config: RunConfig, resume: Path | None, allow: Sequence[str] = ()) -> Run:
    """Open the data, claim the folder, build the model, put it under the engine, take over a checkpoint.

    Args:
        config: the run.
        resume: the run folder to continue; none starts a new one.
        allow: "foundation" accepts an ``init_from`` that was trained on another foundation.

    Raises:
        ValueError: a user error; the message says how to fix it.
    """
    logging.getLogger("rb.training").addHandler(logging.NullHandler())  # ranks other than 0 say nothing
    if config.train.num_threads:
        torch.set_num_threads(config.train.num_threads)
    device = dist.device()
    # What is wrong with the request is said before anything is loaded or written.
    together(partial(check_request, config))
    asked, config = config, with_micro_batch(config)
    data = together(partial(open_training_data, config.data.train, config.seed, Arrangement.of(config.data)))
    held_out = together(partial(open_validation_data, config.data)) if config.validation.every else {}
    samples = {modality: len(data[modality].stream) for modality in config.train.in_order(data)}
    schedule = Schedule(config.train.schedule, samples, config.train.global_batch_size, config.seed)
    total_steps = together(partial(length_of, config.train, config.optim, schedule))

    folder = RunFolder(resume or Path(config.output_dir) / config.name)
    on_main(partial(folder.claim, new=resume is None))
    built = together(partial(build_model, config.model, config.seed, device))
    together(partial(check_features, built, config, data))
    meta = {"config": to_tree(config), "config_digest": digest(asked), "identities": identities_of(built, data)}
    meta |= {"versions": package_versions(), "seed": config.seed, "num_ranks": dist.world_size()}

    found = on_main(partial(checkpoint.find, folder.path)) if resume else None
    if found:
        together(partial(check_continues, found.meta, config, built, data))
        on_main(partial(checkpoint.set_aside_torn, folder.path, found.step))
    elif config.init_from:
        accepted = together(partial(warm_start, built, config.init_from, allow))
        meta |= {"allowed": accepted} if accepted else {}
    if config.train.activation_checkpointing:
        built.model.recompute_activations()
    if config.train.compile:
        built.model.compile_parts(encoders_alone=config.train.activation_checkpointing)
    timeout_s = collective_timeout_s(config)
    engine = Engine(built.model, built.model.parameter_modalities(), config.optim, config.train, timeout_s)
    if found:
        engine.scatter_state(checkpoint.load_state(found), str(found.path))
    start = found.step if found else 0
    validation = Validation(config, held_out, built, found.meta if found else None)
    if config.validation.keep_best:
        restore_best(folder.path, validation)
    saver = Saver(folder, engine, validation, meta, config.train)
    return Run(
        asked, config, folder, device, data, schedule, total_steps, start, built, engine, validation, meta, saver, start
    )


def take_steps(run: Run, tracker: Tracker, stop: StopRequest) -> int:
    """The loop: one optimizer step after another, metrics and checkpoints in between, to the end or until asked to stop.

    Returns the exit code: FINISHED, STOPPED, ABORTED or, where the last step could not be saved, CANNOT_WRITE.
    """
    train_config, engine = run.config.train, run.engine
    batches = open_batches(run)
    window, bad = Window(train_config.global_batch_size, run.device), BadSteps(run.folder.path, run.start)
    stop.start_steps()
    if stopped_at_start(run, tracker, stop):
        return STOPPED
    heartbeat.phase(heartbeat.TRAINING)
    bar = progress.bar(total=run.total_steps, initial=run.start, unit="step", disable=not dist.is_main())
    for step in range(run.start, run.total_steps):
        heartbeat.step(step)
        turn = run.schedule.at(step)
        rate = rate_at(step, run.config.optim, run.total_steps)
        # Nothing draws from torch's global generator today; if something does, it is the same after a resume.
        torch.manual_seed(hash_key(run.config.seed, "step", step, dist.rank()) & 0x7FFF_FFFF_FFFF_FFFF)
        result = engine.train_step(turn.modality, rate, batches)
        run.done = done = step + 1
        bar.update()

        if result.applied:
            window.add(turn.modality, result.terms, result.grad_norm)
        else:
            window.add_skipped(turn.modality)
        bad.add(done, turn.modality, result, tracker)
        aborting, last = bad.in_a_row >= train_config.max_bad_steps, done == run.total_steps
        asked, written = agreed(bool(stop.reason), run.saver.report())
        run.saver.settle(written)
        stopping = bool(asked) or aborting
        logged = done % train_config.log_every == 0 or last or stopping
        if logged:
            log_window(run, tracker, bar, rate, window, bad)
        # Before the checkpoint of the same step: a run that is killed while validating makes this step, and validates, again.
        best = False
        if run.validation.due(done, last):
            run.saver.wait()  # so that the best so far is known: the best that is saved
            best = validate(run.validation, run.folder.path, done, tracker, stop)
            if run.validation.owed and not logged:
                log_window(run, tracker, bar, rate, window, bad)
            window.restart_clock()
            stopping |= run.validation.owed
        if run.saver.due(done) or last or stopping or best:
            run.saver.save(done, best, tracker)
        saved = run.saver.wait() if last or stopping else True
        if aborting:
            bad.report_end(run.folder.path, done)
            return ABORTED
        if not saved:
            log.error("step %d, the last, is not saved: %s", done, run.saver.missed)
            log.error("make room, then go on from the last checkpoint with --resume %s", run.folder.path)
            return CANNOT_WRITE
        if stopping and (not last or run.validation.owed):
            log.info("stopped by %s; go on with --resume %s", stop.reason or ANOTHER, run.folder.path)
            return STOPPED
    bar.close()
    return FINISHED


def stopped_at_start(run: Run, tracker: Tracker, stop: StopRequest) -> bool:
    """Whether somebody asked to stop before the first step, or while a validation was made that is owed. Collective."""
    stopped = any(agreed(bool(stop.reason)))
    if not stopped and run.validation.owed:
        make_up(run.validation, run.saver, run.folder.path, run.start, tracker, stop)
        stopped = run.validation.owed
    if stopped:
        log.info("stopped by %s before the first step; go on with --resume %s", stop.reason or ANOTHER, run.folder.path)
    return stopped


def log_window(run: Run, tracker: Tracker, bar: Any, rate: float, window: Window, bad: BadSteps) -> None:
    """The metrics of the steps since the last time, to the journal, the log and the bar. Collective."""
    epoch = run.schedule.epochs_after(run.done)
    values = window.values() | bad.values() | {value_name(TRAIN, RATE): rate, value_name(TRAIN, EPOCH): epoch}
    tracker.metrics(run.done, values)
    show(bar, run.done, run.total_steps, values)


def finish(run: Run, tracker: Tracker, code: int, stop: StopRequest) -> None:
    """Close what ``prepare`` and ``start_tracking`` opened, once the loop has returned its exit code. Collective."""
    heartbeat.phase(heartbeat.END)
    status = {FINISHED: "FINISHED", STOPPED: "KILLED"}.get(code, "FAILED")
    # The other ranks wait for this one meanwhile, and give up after timeout_s.
    tracker.finish(status, min(END_WAIT_S, run.config.train.timeout_s / 2), lambda: bool(stop.reason))
    run.engine.close()
    # The last act. All ranks wait for it: a launcher takes the first exit for the end of the run.
    end = partial(run.folder.end, code, run.done, run.total_steps)
    on_main(partial(attempt, run.folder.path / RUN_END, end) if code in (CANNOT_WRITE, ABORTED) else end)


def open_batches(run: Run) -> Iterator[Batch]:
    """This rank's micro-batches from the run's first step on, on its device."""
    steps = range(run.start, run.total_steps)
    return training_batches(run.config, run.built, run.data, run.schedule, run.engine.layout, dist.rank(), steps)


def restore_best(run_dir: Path, validation: Validation) -> None:
    """Let the file `best` name what was the best at the checkpoint that the run continues from. Collective."""
    if not on_main(partial(checkpoint.set_best, run_dir, validation.best.step if validation.best else None)):
        validation.best = None  # none yet, or its folder is gone: the next score is the best again


def start_tracking(run: Run, resumed: bool) -> Tracker:
    """The run folder's small files, the first log lines, and the tracker with all that is known of the run by now."""
    config, model = run.config, run.built.model
    place = environment(
        {
            "ranks": dist.world_size(),
            "micro_batch_size": run.engine.layout.micro_batch_size,
            "contrastive_batch_size": run.engine.layout.pool_size,
            "device": device_name(run.device),
            "optimizer_kernel": run.engine.kernel,
        }
    )
    counts = trainable_counts(model.parameter_modalities(), run.engine.parameters)
    on_main(partial(run.folder.write, RUN_ENVIRONMENT, place))
    on_main(lambda: run.folder.write(RUN_WEIGHTS, run.built.ledger.report(model)))
    if not resumed:
        on_main(partial(run.folder.write, RUN_CONFIG, dump_run(run.asked)))
    log.info("run folder %s, commit %s", run.folder.path, place["git_commit"])
    for line in run.built.ledger.lines(model) if dist.is_main() else ():
        log.info("weights: %s", line)
    log.info("%d ranks (%s), optimizer kernel %s", place["ranks"], place["device"], place["optimizer_kernel"])
    log.info("micro-batch %d (%s in the run file)", place["micro_batch_size"], run.asked.train.micro_batch_size)
    log.info("trainable parameters: %s", ", ".join(f"{users} {count:,}" for users, count in counts.items()))
    for line in uses_of_groups(run.data, training_transform(run.config, run.built)):
        log.info("%s", line)
    log.info("%s, steps of the first epoch: %s", run.schedule.kind, run.schedule.epoch_steps(0))
    if config.train.compile:
        log.info(
            "train.compile: the first step of each modality waits for the compiler, minutes at full size; later starts on this host find its files"
        )
    log.info("steps %d to %d", run.start, run.total_steps)

    tracking = config.tracking
    make = partial(Tracker, run.folder.path, dist.is_main(), tracking.experiment, config.name, tracking.mlflow)
    tracker = together(make)
    tracker.params(run.meta["config"] | {"itc_batch_size": run.engine.layout.pool_size})
    tracker.tags({f"trainable_parameters.{users}": count for users, count in counts.items()})
    tracker.tags({f"foundation.{part}": fingerprint for part, fingerprint in run.built.foundation.items()})
    tracker.tags({"git_commit": place["git_commit"], "config_digest": run.meta["config_digest"]})
    tracker.tags({f"extension_{n}": one for n, one in enumerate(config.optim.extensions, 1)})
    tracker.tags({"ranks": dist.world_size(), "optimizer_kernel": run.engine.kernel})
    readers = [reader for d in run.data.values() for reader in d.readers]
    tracker.inputs((reader.manifest.name, reader.digest, str(reader.path)) for reader in readers)
    tracker.inputs(run.validation.inputs(), "validation")
    for name in (RUN_CONFIG, RUN_ENVIRONMENT, RUN_WEIGHTS):
        tracker.artifact(run.folder.path / name)
    if resumed:
        tracker.resumed(run.start)
    return tracker


def check_request(config: RunConfig, world_size: int | None = None) -> None:
    """Batch sizes divide over the ranks (none: those at hand), DeepSpeed's file and kernel are fit, every modality that trains has data.

    Raises:
        ValueError: names what does not fit.
    """
    ds_settings(config.train, config.optim, world_size or dist.world_size())
    choose_kernel(config.optim.kernel, dist.device())
    if config.train.compile:
        check_can_compile(dist.device())
    for modality in config.model.train_modalities:
        if modality not in config.data.train:
            raise ValueError(
                f"model.train_modalities lists {modality}, but data.train has no manifest for it; "
                "list one there, or take it out of model.train_modalities"
            )


def warm_start(built: Built, source: str, allow: Sequence[str]) -> dict[str, list[str]]:
    """Take over the trained parameters of another run, and say how many; the differences that ``allow`` accepted."""
    trained = read_trained(source, built.config.foundation)
    accepted = check_foundation(f"init_from {source}", trained.recorded, built, allow)
    if HEAD_ROLE in trained.recorded and HEAD_ROLE not in built.files:
        raise ValueError(
            f"init_from {source}: was imported with the LM head of its Q-Former, which this run lacks; "
            f"set model.foundation.text_head={Path(source) / RUN_TEXT_HEAD}"
        )
    fresh = checkpoint.copy_parameters(f"init_from {source}", built.model.trainable_parameters(), trained.values)
    log.info("init_from %s: %d parameters taken over, %d newly initialised", source, len(trained.values), len(fresh))
    for name in fresh:
        log.info("  newly initialised: %s", name)
    return accepted


def trainable_counts(users: dict[str, tuple[str, ...]], parameters: dict[str, nn.Parameter]) -> dict[str, int]:
    """Trainable numbers by who uses them: "image_region", or "point_cloud+point_cloud_region" for what is shared."""
    counts: dict[str, int] = {}
    for name, parameter in parameters.items():
        key = "+".join(users[name])
        counts[key] = counts.get(key, 0) + parameter.numel()
    return counts


def device_name(device: torch.device) -> str:
    """The device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def show(bar: Any, done: int, total: int, values: dict[str, float]) -> None:
    """The newest values: totals on the bar, everything in the log file. Rank 0."""
    if not dist.is_main():
        return
    named = [(parse_name(name), value) for name, value in values.items()]
    totals = {name.place: f"{value:.3f}" for name, value in named if name and name.term == TOTAL}
    bar.set_postfix(totals | {RATE: f"{values[value_name(TRAIN, RATE)]:.1e}"}, refresh=False)
    step_log.info("step %d/%d %s", done, total, shown_values(values))
