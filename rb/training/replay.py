"""One optimizer step of a run once more, by one process: the micro-batches that its ranks had, and whose numbers are not finite.

A step is the same on any layout whose micro-batches are the same: here one process reads all of them, in the order of the step, and each counts for the
rank that had it. Nothing is written. Parameters come from the newest checkpoint before the step; the steps between are made first.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from rb.checkpoints import checkpoint
from rb.checkpoints.checkpoint import Checkpoint
from rb.core import dist, progress
from rb.core.batch import Batch
from rb.core.config import RunConfig
from rb.core.seeding import hash_key
from rb.core.step_layout import StepLayout
from rb.core.urls import Location
from rb.data.order import Arrangement
from rb.data.pipeline import TrainingData, open_training_data
from rb.inference.cache_features import check_features
from rb.model.region_blip import RegionBLIP
from rb.model.weights.build import Built, build_model
from rb.training.batches import training_batches
from rb.training.engine import Engine
from rb.training.extending import length_of
from rb.training.loop import warm_start
from rb.training.optim import rate_at
from rb.training.recorded import bad_step_of, layout_of, losses_of
from rb.training.run_folder import check_continues, saved_run
from rb.training.schedule import Schedule
from rb.training.suspects import Suspect, bad_losses, find_suspects, gradients, not_finite


@dataclass(frozen=True)
class Found:
    """A suspect with all that identifies it.

    Attributes:
        why: what was found, and the numbers of its micro-batch and row.
        rank, micro_step: who read it in the run.
        position: in the modality's stream.
        manifest: that holds it.
    """

    why: Suspect
    rank: int
    micro_step: int
    id: str
    position: int
    caption: str
    manifest: Location


@dataclass(frozen=True)
class Replay:
    """What a step gave.

    Attributes:
        step: the first is 1.
        layout: of the step in the run.
        state: path of the checkpoint; none for the run's beginning.
        state_step: steps that this state had made.
        made: steps that were made from there; with ``left_out`` those that were not, 0 unless ``--from-checkpoint``.
        read: of each rank, the samples that it read: (id, position in the modality's stream).
        losses: of each rank, every term and ``total``, its mean over its micro-batches.
        grad_norm: of the whole gradient, before clipping.
        bad_parameters: names, in the state itself. bad_gradients: those with a gradient that is not finite.
        suspects: samples at fault; all of the step where the state is.
        recorded: per rank, or one row of means over ranks, what the journal says of the same; empty where it does not.
    """

    step: int
    modality: str
    layout: StepLayout
    state: Path | None
    state_step: int
    made: int
    left_out: int
    read: list[list[tuple[str, int]]]
    losses: list[dict[str, float]]
    grad_norm: float
    bad_parameters: tuple[str, ...]
    bad_gradients: tuple[str, ...]
    suspects: list[Found]
    recorded: Sequence[Mapping[str, float]]

    @property
    def bad_terms(self) -> list[list[str]]:
        """For each rank the terms that are not finite."""
        return [bad_losses({name: torch.tensor(value) for name, value in rank.items()}) for rank in self.losses]

    @property
    def finite(self) -> bool:
        """Whether the step would be applied."""
        return not any(self.bad_terms) and not self.bad_gradients


def replay(run_dir: Path, step: int, overrides: Sequence[str] = (), from_checkpoint: bool = False) -> Replay:
    """Make one step of a run again.

    Args:
        run_dir: the run folder.
        step: as in the journal, from 1.
        overrides: of settings that change no result, such as the foundation's folder.
        from_checkpoint: do not make the steps between the checkpoint and the step.

    Raises:
        ValueError: no such run or step; data or foundation are not the run's.
    """
    config = saved_run(run_dir, list(overrides))
    if config.train.num_threads:
        torch.set_num_threads(config.train.num_threads)
    data = open_training_data(config.data.train, config.seed, Arrangement.of(config.data))
    samples = {modality: len(data[modality].stream) for modality in config.train.in_order(data)}
    schedule = Schedule(config.train.schedule, samples, config.train.global_batch_size, config.seed)
    total = length_of(config.train, config.optim, schedule)
    if not 1 <= step <= total:
        raise ValueError(f"step {step}: the run has steps 1 to {total}")
    layout = layout_of(run_dir, step, config.train)
    config = replace(config, train=replace(config.train, micro_batch_size=layout.micro_batch_size))
    built = build_model(config.model, config.seed, dist.device())
    check_features(built, config, data)
    found = checkpoint.find_until(run_dir, step - 1)
    if found:
        check_continues(found.meta, config, built, data)
    elif config.init_from:
        warm_start(built, config.init_from, ())
    start = found.step if found else 0
    between = range(start, start if from_checkpoint else step - 1)
    _take_over(config, built, data, schedule, total, found, between)
    here = replace(config, data=replace(config.data, num_workers=0))  # one step is not worth loader processes
    parts = list(training_batches(here, built, data, schedule, _alone(layout), 0, range(step - 1, step)))
    losses, grads = make_step(built.model, parts, layout, (config.seed, step - 1))
    bad = bad_step_of(run_dir, step)
    result = Replay(
        step=step,
        modality=parts[0].modality,
        layout=layout,
        state=found.path if found else None,
        state_step=start,
        made=len(between),
        left_out=step - 1 - start - len(between),
        read=_read(parts, layout),
        losses=losses,
        grad_norm=float(torch.stack([grad.float().norm() for grad in grads.values()]).norm()),
        bad_parameters=not_finite(dict(built.model.trainable_parameters())),
        bad_gradients=not_finite(grads),
        suspects=[],
        recorded=[one.losses for one in bad.ranks] if bad else [losses_of(run_dir, step, schedule.at)],
    )
    if result.finite:
        return result
    suspects = find_suspects(built.model, parts, layout.pool_size)
    return replace(result, suspects=[_identified(one, parts, layout, data) for one in suspects])


def make_step(
    model: RegionBLIP, parts: Sequence[Batch], layout: StepLayout, key: tuple[int, int]
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """The losses of each rank of a step, and the gradient of the whole step by parameter; moves nothing.

    Args:
        parts: all micro-batches of the step, in its order.
        layout: of the step in the run.
        key: seed of the run, and the step from 0: the ranks' generators were seeded by them.
    """
    sums: list[dict[str, Tensor]] = [{} for _ in range(layout.world_size)]
    grads: dict[str, Tensor] = {}
    parameters, places = model.trainable_parameters(), _places(layout)
    for number, (batch, share) in enumerate(model.shares(parts, _alone(layout))):
        rank, _ = places[number]
        torch.manual_seed(hash_key(key[0], "step", key[1], rank) & 0x7FFF_FFFF_FFFF_FFFF)
        losses = model(batch, share)
        for name, value in losses.with_total().items():
            sums[rank][name] = sums[rank].get(name, 0.0) + value.detach()
        for name, grad in gradients(losses.total, parameters).items():
            grads[name] = grads[name] + grad if name in grads else grad
    values = [{name: float(value) / layout.grad_accum_steps for name, value in rank.items()} for rank in sums]
    return values, {name: grad / layout.num_parts for name, grad in grads.items()}


def _alone(layout: StepLayout) -> StepLayout:
    """The same micro-batches on one process."""
    return replace(layout, world_size=1)


def _places(layout: StepLayout) -> list[tuple[int, int]]:
    """For each micro-batch, in the order of the step, the rank that had it and its number there."""
    of_ranks = [(rank, micro) for rank in range(layout.world_size) for micro in range(layout.grad_accum_steps)]
    return sorted(of_ranks, key=lambda place: layout.start(*place))


def _read(parts: Sequence[Batch], layout: StepLayout) -> list[list[tuple[str, int]]]:
    """(id, position) of the samples of each rank, in the order in which it read them."""
    read: list[list[tuple[str, int]]] = [[] for _ in range(layout.world_size)]
    for (rank, _), part in zip(_places(layout), parts, strict=True):
        read[rank] += zip(part.ids, part.positions, strict=True)
    return read


def _take_over(
    config: RunConfig,
    built: Built,
    data: Mapping[str, TrainingData],
    schedule: Schedule,
    total: int,
    found: Checkpoint | None,
    steps: range,
) -> None:
    """Put a checkpoint into the model, and make some steps from there, as a run on one rank would."""
    parameters = built.model.trainable_parameters()
    if found and not steps:
        values = checkpoint.parameters_of(found)
        checkpoint.check_names(str(found.path), values, parameters)
        checkpoint.copy_parameters(str(found.path), parameters, values)
    if not steps:
        return
    os.environ.setdefault("LOCAL_RANK", "0")
    dist.init_alone()
    engine = Engine(built.model, built.model.parameter_modalities(), config.optim, config.train)
    if found:
        engine.scatter_state(checkpoint.load_state(found), str(found.path))
    batches = training_batches(config, built, data, schedule, engine.layout, 0, steps)
    for step in progress.bar(steps, desc="steps before", unit="step", delay=5):
        torch.manual_seed(hash_key(config.seed, "step", step, 0) & 0x7FFF_FFFF_FFFF_FFFF)
        engine.train_step(schedule.at(step).modality, rate_at(step, config.optim, total), batches)


def _identified(
    suspect: Suspect, parts: Sequence[Batch], layout: StepLayout, data: Mapping[str, TrainingData]
) -> Found:
    batch, (rank, micro_step) = parts[suspect.part], _places(layout)[suspect.part]
    position = batch.positions[suspect.row]
    reader, _ = data[batch.modality].place(position)
    return Found(suspect, rank, micro_step, batch.ids[suspect.row], position, batch.captions[suspect.row], reader.path)
