"""Training steps in full size: by DeepSpeed ZeRO-2 and by plain torch, compared, timed, and the memory beside what was predicted.

Plain torch is ``torch.optim.AdamW`` and a backward pass, nothing of ours; an idle modality has no gradient there and stands still by that.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rb.core.batch import Batch
from rb.core.config import OptimConfig, TrainConfig
from rb.core.step_layout import StepLayout
from rb.costs.memory import MemoryModel
from rb.costs.meta_model import META
from rb.costs.random_models import Size, build_random, random_batch
from rb.model.region_blip import RegionBLIP
from rb.training.engine import Engine, ds_settings
from rb.training.micro_batch import bucket_bytes
from rb.training.optim import parameter_groups

OPTIM = OptimConfig(warmup_steps=0)
# Relative. Kernels of bfloat16 attention add in any order, and AdamW's first steps only look at a gradient's sign; the control (plain torch
# against itself) is printed beside the comparison and says how much of it that is.
LOSS_TOLERANCE = {torch.bfloat16: 5e-3, torch.float32: 1e-5}
UPDATE_TOLERANCE = {torch.bfloat16: 0.1, torch.float32: 1e-3}
WARM_UP, TIMED = 2, 5
TORCH, ENGINE = "torch", "ZeRO-2"

Step = Callable[[Batch], dict[str, Tensor]]  # a micro-batch -> its loss terms, after one update


@dataclass
class Trace:
    """What some steps did: losses of each step, and by how much each parameter moved in all."""

    losses: list[dict[str, float]]
    moved: dict[str, Tensor]


@dataclass
class Comparison:
    """Two traces from one start over the same batches."""

    name: str
    loss_difference: float
    update_difference: float
    loss_tolerance: float
    update_tolerance: float

    @property
    def ok(self) -> bool:
        """Whether both are within tolerance; what is not a number is not."""
        return self.loss_difference <= self.loss_tolerance and self.update_difference <= self.update_tolerance


@dataclass
class Timing:
    """One modality at one micro-batch size. None where it did not fit; memory is None where the device does not say."""

    engine: str
    modality: str
    micro_batch: int
    ms_per_step: float | None
    peak_gb: float | None
    predicted_gb: float

    @property
    def samples_per_s(self) -> float | None:
        """None where it did not fit."""
        return None if self.ms_per_step is None else 1000 * self.micro_batch / self.ms_per_step


def plain_torch(model: RegionBLIP) -> Step:
    """Steps by torch alone."""
    groups = parameter_groups(model.trainable_parameters(), model.parameter_modalities(), OPTIM)
    fused = model.device.type == "cuda"
    optimizer = torch.optim.AdamW(groups, lr=OPTIM.lr, betas=OPTIM.betas, fused=fused)

    def step(batch: Batch) -> dict[str, Tensor]:
        losses = model(batch)
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {name: value.detach() for name, value in losses.terms.items()}

    return step


def zero2(model: RegionBLIP, ds_config: str) -> tuple[Step, Engine]:
    """Steps by the trainer's own engine; close the engine behind them."""
    # The engine's batch size only checks that the numbers divide; it takes micro-batches of any size.
    train = TrainConfig(global_batch_size=1, micro_batch_size=1, ds_config=ds_config)
    engine = Engine(model, model.parameter_modalities(), OPTIM, train)

    def step(batch: Batch) -> dict[str, Tensor]:
        result = engine.train_step(batch.modality, OPTIM.lr, iter([batch]))
        return {name: value for name, value in result.terms.items() if name != "total"}

    return step, engine


def snapshot(model: RegionBLIP) -> dict[str, Tensor]:
    """Copies of everything that trains."""
    return {name: p.detach().clone() for name, p in model.trainable_parameters().items()}


@torch.no_grad()
def restore(model: RegionBLIP, values: dict[str, Tensor]) -> None:
    """The reverse of ``snapshot``, gradients dropped."""
    for name, parameter in model.trainable_parameters().items():
        parameter.copy_(values[name])
        parameter.grad = None


def trace(model: RegionBLIP, step: Step, batches: list[Batch]) -> Trace:
    """Take one step for each batch."""
    start = snapshot(model)
    losses = [{name: float(value) for name, value in step(batch).items()} for batch in batches]
    return Trace(losses, {name: p.detach() - start[name] for name, p in model.trainable_parameters().items()})


def compare(name: str, found: Trace, expected: Trace, dtype: torch.dtype) -> Comparison:
    """The largest relative difference of a loss, and of the whole movement of one modality's or one part's parameters."""
    loss_difference = 0.0
    for one, other in zip(found.losses, expected.losses, strict=True):
        assert one.keys() == other.keys()
        for term, value in other.items():
            loss_difference = _largest(loss_difference, abs(one[term] - value) / max(abs(value), 1e-6))
    update_difference = 0.0
    for _, names in itertools.groupby(sorted(expected.moved, key=_kind), key=_kind):
        listed = list(names)
        apart = torch.stack([(found.moved[n] - expected.moved[n]).norm() for n in listed]).norm()
        whole = torch.stack([expected.moved[n].norm() for n in listed]).norm()
        update_difference = _largest(update_difference, float(apart / whole.clamp_min(1e-12)))
    return Comparison(name, loss_difference, update_difference, LOSS_TOLERANCE[dtype], UPDATE_TOLERANCE[dtype])


def _largest(one: float, other: float) -> float:
    """As max, but what is not a number stays."""
    return other if not other <= one else one


def _kind(name: str) -> str:
    """Parameters compared as one: a part of a modality, or all LoRA of a modality."""
    pieces = name.split(".")
    return ".".join(pieces[:3]) if pieces[0] == "parts" else f"{pieces[0]}.{pieces[-2]}"


def memory_model(size: Size, dtype: torch.dtype, most: int) -> MemoryModel:
    """The plan's memory (``rb/costs/memory.py``) of plain torch's steps of at most so many samples, all with the longest captions."""
    return MemoryModel(build_random(size, META, dtype), 0, most)


def predicted_gb(memory: MemoryModel, engine: str, modality: str, micro_batch: int) -> float:
    """What a step is to take at most; ZeRO-2 has buckets besides."""
    layout = StepLayout(micro_batch, micro_batch, micro_batch, 1)
    settings = ds_settings(TrainConfig(global_batch_size=1, micro_batch_size=1), OPTIM, 1)
    buckets = 0 if engine == TORCH else bucket_bytes(settings)
    return (memory.of(modality, layout).total + buckets) / 1e9


def time_steps(
    model: RegionBLIP, engine: str, step: Step, size: Size, modality: str, micro_batch: int, predicted: float
) -> Timing:
    """Median time of a step and the peak of memory; a batch that does not fit is a row that says so."""
    cuda = model.device.type == "cuda"
    batch = random_batch(size, modality, micro_batch, model.device)
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    times = []
    try:
        for _ in range(WARM_UP + TIMED):
            begun = time.perf_counter()
            step(batch)
            if cuda:
                torch.cuda.synchronize()
            times.append(1000 * (time.perf_counter() - begun))
    except torch.OutOfMemoryError:
        return Timing(engine, modality, micro_batch, None, None, predicted)
    peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else None
    return Timing(engine, modality, micro_batch, statistics.median(times[WARM_UP:]), peak, predicted)
