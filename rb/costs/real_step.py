"""Real micro-batches without data, and what torch and the machine say of a step with one: FLOPs, saved bytes, peak memory.

On a CPU peak memory is how far the process's resident memory rises during the step. Call ``give_memory_back`` before there is anything to measure:
then every allocation of 64 kB and more goes back to the system at once, so that none is counted twice.
"""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rb.core.batch import Batch
from rb.core.seeding import torch_generator
from rb.costs.executed import LACKING
from rb.model.region_blip import RegionBLIP

_M_MMAP_THRESHOLD = -3  # of mallopt(3)


def with_numbers(batch: Batch, model: RegionBLIP) -> Batch:
    """A typical batch on the CPU: its shapes, masks and keys; inputs, boxes, tokens and draws are random, the same for the same batch."""
    draws = torch_generator("real step", batch.modality, len(batch))

    def tokens(like: Tensor, vocabulary: int) -> Tensor:
        return torch.randint(vocabulary // 2, vocabulary - 1, like.shape, generator=draws)

    words = model.blip2.language_model.get_input_embeddings().get_parameter("weight")
    inputs = torch.rand(batch.inputs.shape, generator=draws)
    boxes = None if batch.boxes is None else torch.rand(batch.boxes.shape, generator=draws)
    if boxes is not None and batch.subjects is not None:  # captions of one subject have one box
        boxes = boxes[batch.subjects][batch.subject_rows]
    return replace(
        batch,
        inputs=(255 * inputs).to(batch.inputs.dtype) if batch.inputs.dtype == torch.uint8 else inputs,
        boxes=boxes,
        text_ids=tokens(batch.text_ids, len(model.text_branch.embeddings.word_embeddings.weight)),
        llm_ids=tokens(batch.llm_ids, len(words)),
        itm_uniforms=torch.rand(batch.itm_uniforms.shape, generator=draws),
    )


def torch_counter() -> FlopCounterMode:
    """Torch's own counter, with the formulas that it lacks (``executed.py``)."""
    custom: dict[Any, Any] = {kernel: _without_result(formula) for kernel, formula in LACKING.items()}
    return FlopCounterMode(display=False, custom_mapping=custom)


def _without_result(formula: Callable[..., int]) -> Callable[..., int]:
    """A formula over shapes, as torch's table wants it."""
    return lambda *shapes, out_shape=None, **_: formula(*shapes)  # noqa: ARG005 (torch's name)


def give_memory_back() -> None:
    """From now on in this process; of glibc."""
    ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, 1 << 16)


def peak_bytes(step: Callable[[], None], device: torch.device) -> float:
    """The most that a step takes beside what is there when it begins: by CUDA's allocator, or by the process's resident memory."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = float(torch.cuda.memory_allocated(device))
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the most memory so far
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _status(name: str) -> float:
    """A line of this process's status, in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, f"Linux names {name}"
    return 1024.0 * int(found[1])
