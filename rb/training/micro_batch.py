"""``train.micro_batch_size: auto``: the division of a step that a run takes on the ranks and devices at hand.

Of the micro-batches that divide a rank's share of the global batch and its contrastive batch: on GPUs the largest whose predicted peak
(``rb/costs/memory.py``) fits into the memory of the smallest one, on a CPU, whose memory ranks share with everything else, the largest of at most
``CPU_MOST``. A run folder keeps ``auto`` in ``config.yaml`` and what it became in ``environment.json``; a resume chooses anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from rb.core import dist
from rb.core.config import AUTO, RunConfig
from rb.core.step_layout import StepLayout
from rb.costs.memory import MemoryModel, largest_that_fits, room_of
from rb.costs.meta_model import training_model_of
from rb.training.agree import agreed, on_main
from rb.training.engine import ds_settings

CPU_MOST = 16


def choose_layout(config: RunConfig, world_size: int, device_bytes: int | None) -> StepLayout:
    """The division of a step of a run on so many ranks.

    Args:
        config: the run; with a number for a micro-batch nothing is chosen.
        device_bytes: memory of the smallest GPU; none on a CPU.

    Raises:
        ValueError: the sizes do not divide, or not even one sample fits.
    """
    layouts = config.train.layouts(world_size)
    if config.train.micro_batch_size != AUTO:
        return layouts[0]
    if device_bytes is None:
        return next(layout for layout in layouts if layout.micro_batch_size <= CPU_MOST)
    memory = memory_model(config, world_size)
    fits = largest_that_fits(layouts, memory.peak, room_of(device_bytes))
    if fits is None:
        raise ValueError(
            f"train.micro_batch_size: auto finds no size that fits: one sample takes {memory.peak(layouts[-1]) / 1e9:.1f} GB of the "
            f"{room_of(device_bytes) / 1e9:.1f} GB that a GPU here has for it; use larger GPUs or a smaller model.foundation.blip2"
        )
    return fits


def memory_model(config: RunConfig, world_size: int) -> MemoryModel:
    """The memory of a run's steps on so many ranks."""
    most = config.train.layouts(world_size)[0].micro_batch_size
    buckets = bucket_bytes(ds_settings(config.train, config.optim, world_size))
    return MemoryModel(training_model_of(config), buckets, most)


def bucket_bytes(settings: Mapping[str, Any]) -> int:
    """Bytes of the buckets through which DeepSpeed's ZeRO-2 reduces fp32 gradients (two where reduction and backward pass overlap)."""
    zero = settings["zero_optimization"]
    return 4 * int(zero.get("reduce_bucket_size", 5e8)) * (2 if zero.get("overlap_comm") else 1)


def bytes_at_hand() -> int | None:
    """Memory of the smallest GPU of this host; none without one."""
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return min((torch.cuda.get_device_properties(gpu).total_memory for gpu in gpus), default=None)


def with_micro_batch(config: RunConfig) -> RunConfig:
    """A run with a number for its micro-batch, the same on all ranks. Collective."""
    if config.train.micro_batch_size != AUTO:
        return config
    own = bytes_at_hand()
    mebibytes = -agreed(-((own or 0) >> 20))[0]  # of the smallest on any host
    layout = on_main(partial(choose_layout, config, dist.world_size(), mebibytes << 20 if own else None))
    return replace(config, train=replace(config.train, micro_batch_size=layout.micro_batch_size))
