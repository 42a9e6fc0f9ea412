"""Which samples of a step make a loss or gradient that is not finite.

Asked in this order, until somebody is found:

1. Where does a sample first become a number that is not finite, on its way to the losses? Up to the ITC vectors no sample meets another.
2. Which losses are not finite where a sample is read alone, as the only one of its step?
3. Which gradients are not, likewise?
4. Without whom does a pool become finite? Each sample in turn is replaced by its neighbour: for what only a pair of samples makes in ITC or ITM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rb.core.batch import Batch
from rb.core.step_layout import StepLayout
from rb.model.region_blip import RegionBLIP

GRADIENT_STAGE, TERM_STAGE, POOL_STAGE = "gradient", "loss", "meeting another sample of its pool"


@dataclass(frozen=True)
class Suspect:
    """A sample that makes numbers that are not finite.

    Attributes:
        part: number of its micro-batch in the step. row: in it.
        stage: the first thing on its way that is not finite: a name of ``RegionBLIP.stages``, ``loss`` or ``gradient``; or what it takes.
        terms: losses that are not finite where it is read alone.
        parameters: those with a gradient that is not finite where it is read alone; asked only where no loss is at fault.
    """

    part: int
    row: int
    stage: str
    terms: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()


def bad_losses(losses: dict[str, Tensor]) -> list[str]:
    """Terms that are not finite."""
    return [name for name, value in losses.items() if not bool(torch.isfinite(value))]


def gradients(total: Tensor, parameters: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    """Gradients by name, of those parameters that the loss reaches. Leaves nothing in the parameters."""
    if not total.requires_grad:
        return {}
    found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(parameters, found, strict=True) if gradient is not None}


def not_finite(tensors: dict[str, Tensor]) -> tuple[str, ...]:
    """Names of tensors that hold such a number."""
    return tuple(name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all()))


def find_suspects(model: RegionBLIP, parts: Sequence[Batch], pool_size: int) -> list[Suspect]:
    """The samples at fault in a step that is not finite; none where no single sample is.

    Args:
        model: with the parameters that the step had.
        parts: all micro-batches of the step, in its order.
        pool_size: samples that are contrasted with each other.
    """
    stage_of = {
        place: stage for number, part in enumerate(parts) for place, stage in _first_stages(model, number, part)
    }
    alone = [
        (number, row, part.rows(slice(row, row + 1))) for number, part in enumerate(parts) for row in range(len(part))
    ]
    found = []
    for number, row, sample in alone:
        with torch.no_grad():
            terms = tuple(bad_losses(model(sample).terms))
        if terms or (number, row) in stage_of:
            found.append(Suspect(number, row, stage_of.get((number, row), TERM_STAGE), terms))
    if found:
        return found
    parameters = model.trainable_parameters()
    for number, row, sample in alone:
        names = not_finite(gradients(model(sample).total, parameters))
        if names:
            found.append(Suspect(number, row, GRADIENT_STAGE, parameters=names))
    return found or _by_replacement(model, parts, pool_size)


def _first_stages(model: RegionBLIP, number: int, part: Batch) -> list[tuple[tuple[int, int], str]]:
    """((micro-batch, row), stage) of those samples that become not finite before any loss."""
    stages = model.stages(part)
    fine = torch.stack([torch.isfinite(tensor.flatten(1)).all(1) for tensor in stages.values()]).cpu()  # [stages, B]
    names = list(stages)
    return [
        ((number, row), names[int((~fine[:, row]).int().argmax())])
        for row in range(len(part))
        if not fine[:, row].all()
    ]


def _by_replacement(model: RegionBLIP, parts: Sequence[Batch], pool_size: int) -> list[Suspect]:
    """Samples without which their pool is finite."""
    passes = pool_size // len(parts[0])
    found = []
    for first in range(0, len(parts), passes):
        pool = parts[first : first + passes]
        is_bad = _judge(model, pool)
        if is_bad is None:
            continue
        whole = Batch.joined(pool)
        for place in range(len(whole)):
            other = (place + 1) % len(whole)
            changed = [
                whole.rows(slice(0, place)),
                whole.rows(slice(other, other + 1)),
                whole.rows(slice(place + 1, None)),
            ]
            if len(whole) > 1 and not is_bad(_divided(Batch.joined(changed), len(pool[0]))):
                part, row = divmod(place, len(pool[0]))
                found.append(Suspect(first + part, row, POOL_STAGE))
    return found


def _divided(batch: Batch, size: int) -> list[Batch]:
    return [batch.rows(slice(start, start + size)) for start in range(0, len(batch), size)]


def _judge(model: RegionBLIP, pool: Sequence[Batch]) -> Callable[[Sequence[Batch]], bool] | None:
    """How to tell whether a changed pool is still at fault, by losses or else by gradients; none where the pool is finite."""

    def by_losses(batches: Sequence[Batch]) -> bool:
        with torch.no_grad():
            return any(
                bad_losses(model(batch, share).terms) for batch, share in model.shares(batches, _layout(batches))
            )

    def by_gradients(batches: Sequence[Batch]) -> bool:
        shares = model.shares(batches, _layout(batches))
        return any(
            not_finite(gradients(model(batch, share).total, model.trainable_parameters())) for batch, share in shares
        )

    return next((judge for judge in (by_losses, by_gradients) if judge(pool)), None)


def _layout(batches: Sequence[Batch]) -> StepLayout:
    """A step of one pool on one process."""
    size, whole = len(batches[0]), sum(map(len, batches))
    return StepLayout(whole, size, whole, 1)
