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
from rb.costs.random_models import Size, random_batch
from rb.model.blip2_config import llm_config_of, qformer_config_of
from rb.model.region_blip import RegionBLIP
from rb.training.engine import Engine
from rb.training.optim import parameter_groups

OPTIM = OptimConfig(warmup_steps=0)
# Relative. Kernels of bfloat16 attention add in any order, and AdamW's first steps only look at a gradient's sign; the control (plain torch
# against itself) is printed beside the comparison and says how much of it that is.
LOSS_TOLERANCE = {torch.bfloat16: 5e-3, torch.float32: 1e-5}
UPDATE_TOLERANCE = {torch.bfloat16: 0.1, torch.float32: 1e-3}
WARM_UP, TIMED = 2, 5

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


def predicted_gb(model: RegionBLIP, size: Size, batch: Batch) -> float:
    """The memory model's peak: weights, 16 bytes for each number that trains, 2 GB of workspace, saved activations.

    Derived, never measured: the LLM saves 22 bytes x width for each token and layer of OPT, 37 in T5 (what autograd keeps with frozen weights
    and LoRA on q and v); the Q-Former's passes over 32 padded tokens in fp32 165 MB a sample in full size; the head 12 bytes a logit.
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() for p in model.trainable_parameters().values())
    config = model.blip2.config
    width, captions, prompts = (
        llm_config_of(config).hidden_size,
        batch.llm_ids.shape[1],
        size.num_queries + batch.prompt_ids.shape[1],
    )
    if llm_config_of(config).is_encoder_decoder:
        llm = 37 * width * llm_config_of(config).num_layers * (prompts + captions)
    else:
        llm = 22 * width * llm_config_of(config).num_hidden_layers * (prompts + captions)
    qformer = 165e6 * qformer_config_of(config).hidden_size / 768 * qformer_config_of(config).num_hidden_layers / 12
    a_sample = llm + qformer + 12 * llm_config_of(config).vocab_size * captions
    return (weights + 12 * trained + 2e9 + a_sample * len(batch)) / 1e9  # the weights count 4 of the 16 bytes


def time_steps(model: RegionBLIP, engine: str, step: Step, size: Size, modality: str, micro_batch: int) -> Timing:
    """Median time of a step and the peak of memory; a batch that does not fit is a row that says so."""
    cuda = model.device.type == "cuda"
    batch = random_batch(size, modality, micro_batch, model.device)
    predicted = predicted_gb(model, size, batch)
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
