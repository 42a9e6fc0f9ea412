"""How many bytes of device memory a training step takes on one rank, from shapes alone; ``train.micro_batch_size: auto`` and ``rb plan`` ask here.

    weights    all parameters and buffers, each storage once
    engine     what DeepSpeed's ZeRO-2 keeps beside them for W ranks: 4 / W bytes a trained number for its fp32 copy, 8 / W for AdamW's
               moments, 4 / W for the gradients of the active modality, and its buckets
    step       the most that lives at once beside the weights while a micro-batch goes forward and backward: every storage that torch makes on
               the meta device counts from its first to its last reference, as the caching allocator of CUDA counts it
    pool       frozen features held between the two passes of a pool that is larger than one pass of its ranks

The micro-batch has the longest captions that ``model.max_text_tokens`` allows and a source for each sample, so no batch of a run needs
more. What a process takes beside torch's tensors is ``CONTEXT_BYTES`` and ``SPARE``, which ``room_of`` leaves free. Gathers of the pool
come and go while the LLM's activations are not there yet, so they add nothing to the peak.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rb.core import dist
from rb.core.batch import Batch
from rb.core.step_layout import StepLayout
from rb.core.tensors import tensors_in
from rb.costs.meta_model import META
from rb.costs.on_meta import as_on_a_gpu
from rb.costs.typical_batch import longest_batch
from rb.model import loss_terms
from rb.model.encoded import StepShare
from rb.model.region_blip import RegionBLIP

CONTEXT_BYTES = 2_000_000_000  # assumed: CUDA's context, cuBLAS's and NCCL's buffers
SPARE = 0.05  # assumed: part of a device that the allocator cannot use, because free pieces are too small


def room_of(device_bytes: int) -> int:
    """What a device of so many bytes has for tensors."""
    return int(device_bytes * (1 - SPARE)) - CONTEXT_BYTES


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank; what each is stands at the top of this file.

    Attributes:
        saved: the part of ``step`` that autograd keeps for the backward pass.
    """

    weights: int
    engine: int
    step: int
    pool: int
    saved: int

    @property
    def total(self) -> int:
        """At the peak."""
        return self.weights + self.engine + self.step + self.pool


@dataclass(frozen=True)
class StepBytes:
    """Of one forward and backward pass: the most that lives at once, and what autograd keeps at its middle."""

    peak: int
    saved: int


class Live(TorchDispatchMode):
    """Bytes of the storages that were made within it and are still referred to, and the most of them at once.

    Args:
        known: tensors whose storages count nothing.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = {id(tensor.untyped_storage()) for tensor in known}
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known or key in self._alive:
            return

        def gone(_: Any) -> None:
            self.now -= size
            self._alive.pop(key, None)

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


class Saved(torch.autograd.graph.saved_tensors_hooks):
    """Bytes that autograd keeps of what is computed within it, each storage once.

    Args:
        known: tensors whose storages count nothing: parameters, inputs.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        self.bytes = 0
        self._seen = {id(tensor.untyped_storage()) for tensor in known}
        self._kept: list[torch.UntypedStorage] = []  # so that no other storage gets the same id
        super().__init__(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in self._seen:
            self._seen.add(id(storage))
            self._kept.append(storage)
            self.bytes += storage.nbytes()
        return tensor

    def close(self) -> None:
        """Let go of what was looked at, before the backward pass frees it."""
        self._kept.clear()


def step_bytes(model: RegionBLIP, batch: Batch) -> StepBytes:
    """Of one micro-batch, forward and backward, whatever device the model is on; its gradients are new, and dropped at the end."""
    held = [*model.parameters(), *model.buffers(), *(v for v in vars(batch).values() if isinstance(v, Tensor))]
    names = model.config.terms_of(batch.modality)
    alone = dist.group(1)
    model.zero_grad(set_to_none=True)
    with Live(held) as live:
        share = StepShare(1, loss_terms.totals([batch], names, alone), alone, 1)
        saved = Saved(held)
        with saved:
            loss = model(batch, share).total
        saved.close()
        loss.backward()
    model.zero_grad(set_to_none=True)
    return StepBytes(live.peak, saved.bytes)


def step_on_meta(model: RegionBLIP, modality: str, rows: int) -> StepBytes:
    """Of a micro-batch of ``rows`` longest captions, the model being on the meta device; the bytes of its inputs are in the peak."""
    batch = longest_batch(model, modality, rows)
    with as_on_a_gpu():
        found = step_bytes(model, batch.to(META))
    return StepBytes(found.peak + batch.inputs.numel() * batch.inputs.element_size(), found.saved)


def weight_bytes(model: RegionBLIP) -> int:
    """Parameters and buffers, each storage once."""
    storages = {id(t.untyped_storage()): t.untyped_storage().nbytes() for t in (*model.parameters(), *model.buffers())}
    return sum(storages.values())


def engine_bytes(model: RegionBLIP, modality: str, ranks: int, bucket_bytes: int) -> int:
    """What ZeRO-2 keeps beside the weights while a modality trains."""
    trained = sum(p.numel() for p in model.trainable_parameters().values())
    return (12 * trained + 4 * model.trained_numbers(modality)) // ranks + bucket_bytes


def pool_bytes(model: RegionBLIP, modality: str, layout: StepLayout) -> int:
    """Features of a rank's samples of a pool, and those of the chosen negatives, where the pool is read twice."""
    if layout.pool_passes == 1:
        return 0
    return 2 * layout.pool_passes * layout.micro_batch_size * _feature_bytes(model, modality)


def _feature_bytes(model: RegionBLIP, modality: str) -> int:
    """Frozen features of one source."""
    with as_on_a_gpu(), torch.no_grad():
        features = model.frozen_features(modality, longest_batch(model, modality, 1).inputs)
    return features.numel() * features.element_size()


class MemoryModel:
    """The memory of a run's steps at any micro-batch.

    A peak is the largest of several sums that grow evenly with the micro-batch, so it lies below the straight line between two
    counted ones. Between 1 and the largest that is asked first it is that line, which spares a count for each size.

    Args:
        model: on the meta device, its types those of the device.
        bucket_bytes: of DeepSpeed's buckets.
        most: the largest micro-batch that will be asked.
    """

    def __init__(self, model: RegionBLIP, bucket_bytes: int, most: int) -> None:
        self.model, self.bucket_bytes, self.most = model, bucket_bytes, most
        self._weights = weight_bytes(model)
        self._counted: dict[tuple[str, int], StepBytes] = {}

    def of(self, modality: str, layout: StepLayout) -> Memory:
        """Of a modality's step."""
        step = self._step(modality, layout.micro_batch_size)
        engine = engine_bytes(self.model, modality, layout.world_size, self.bucket_bytes)
        return Memory(self._weights, engine, step.peak, pool_bytes(self.model, modality, layout), step.saved)

    def peak(self, layout: StepLayout) -> int:
        """Bytes of the modality that takes the most."""
        return max(self.of(modality, layout).total for modality in self.model.parts)

    def capacity(self, room: int, ranks: int) -> int:
        """Samples of a micro-batch that ``room`` bytes hold, whatever divides; 0 where not one fits."""
        far = max(self.most, 2)
        found = []
        for modality in self.model.parts:
            one, other = self._count(modality, 1).peak, self._count(modality, far).peak
            fixed = self._weights + engine_bytes(self.model, modality, ranks, self.bucket_bytes)
            found.append(1 + (room - fixed - one) * (far - 1) // (other - one))
        return max(0, min(found))

    def _step(self, modality: str, rows: int) -> StepBytes:
        if rows in (1, self.most):
            return self._count(modality, rows)
        low, high = self._count(modality, 1), self._count(modality, self.most)
        part = (rows - 1) / (self.most - 1)

        def between(one: int, other: int) -> int:
            return round(one + (other - one) * part)

        return StepBytes(between(low.peak, high.peak), between(low.saved, high.saved))

    def _count(self, modality: str, rows: int) -> StepBytes:
        if (modality, rows) not in self._counted:
            self._counted[modality, rows] = step_on_meta(self.model, modality, rows)
        return self._counted[modality, rows]


def largest_that_fits(layouts: Sequence[StepLayout], peak: Callable[[StepLayout], int], room: int) -> StepLayout | None:
    """The first of some layouts, the largest micro-batch first, whose peak is at most ``room`` bytes; none where none is."""
    return next((layout for layout in layouts if peak(layout) <= room), None)
