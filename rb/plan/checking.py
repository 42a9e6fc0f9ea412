"""``rb bench plan``: what the plan says of a micro-batch beside what torch counts and the machine takes in a real one, on this device.

The same captions on both sides: lengths drawn as ``rb bench step`` draws them. FLOPs are those of torch's ``FlopCounterMode``, saved bytes those
of the tensors that autograd really keeps. Peak memory is what CUDA's allocator reports; on a CPU it is how far the process's resident memory
rises during the step, with every allocation of 64 kB and more given back to the system at once (``mallopt``), so that none is counted
twice. Gradients are in it, weights and inputs are not.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from rb.core.batch import Batch
from rb.core.device import usable_device
from rb.core.exit_codes import FINISHED
from rb.core.output import aligned, say, say_json
from rb.core.run_paths import open_foundation
from rb.costs.executed import Counter
from rb.costs.memory import step_bytes
from rb.costs.meta_model import META
from rb.costs.on_meta import as_on_a_gpu
from rb.costs.random_models import SIZES, build_random
from rb.costs.typical_batch import typical_batches
from rb.model.region_blip import RegionBLIP
from rb.model.weights.build import build_model

_M_MMAP_THRESHOLD = -3  # of mallopt(3)


def compare(real: RegionBLIP, shapes: RegionBLIP, modality: str, rows: int) -> dict[str, dict[str, float]]:
    """Figure -> predicted, real, ratio.

    Args:
        real: with numbers. shapes: the same on the meta device.
    """
    batch = with_numbers(next(typical_batches(shapes, modality, rows, 1)))
    counter = Counter()
    with as_on_a_gpu():
        predicted = step_bytes(shapes, batch.to(META))
        with counter:
            shapes(batch.to(META)).total.backward()
    here = batch.to(real.device)
    with torch_counter() as flops:
        saved = step_bytes(real, here).saved
    peak = _peak(real, here)
    counted = sum(part.flops for part in counter.found.parts.values())
    pairs = {"GFLOP": (counted / 1e9, flops.get_total_flops() / 1e9), "saved MB": (predicted.saved / 1e6, saved / 1e6)}
    pairs["peak MB"] = (predicted.peak / 1e6, peak / 1e6)
    return {name: {"predicted": one, "real": other, "ratio": one / other} for name, (one, other) in pairs.items()}


def torch_counter() -> FlopCounterMode:
    """Torch's own counter; it lacks the CPU's kernel of attention, which computes the scores again in its backward pass as CUDA's do."""

    def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_backward_flop_count(grad, query, key, value)

    name = "_scaled_dot_product_flash_attention_for_cpu"
    kernels = {getattr(torch.ops.aten, name): forward, getattr(torch.ops.aten, f"{name}_backward"): backward}
    return FlopCounterMode(display=False, custom_mapping=kernels)


def with_numbers(batch: Batch) -> Batch:
    """A typical batch on the CPU: its shapes and masks, random inputs."""
    boxes = None if batch.boxes is None else torch.rand(batch.boxes.shape)
    return replace(batch, inputs=torch.rand(batch.inputs.shape).to(batch.inputs.dtype), boxes=boxes)


def _peak(model: RegionBLIP, batch: Batch) -> float:
    """The most that a forward and backward pass takes beside the weights, in bytes."""
    model.zero_grad(set_to_none=True)
    gc.collect()
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = float(torch.cuda.memory_allocated())
        model(batch).total.backward()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the most memory so far
    before = _status("VmRSS")
    model(batch).total.backward()
    return _status("VmHWM") - before


def _status(name: str) -> float:
    """A line of this process's status, in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, f"Linux names {name}"
    return 1024.0 * int(found[1])


def run(args: argparse.Namespace) -> int:
    """Compare and print."""
    device = usable_device(args.device)
    if device.type == "cpu":  # before there is anything that would be kept
        ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, 1 << 16)
    torch.manual_seed(0)
    if args.run_file:
        config = open_foundation(args.run_file, args.overrides).model
        if device.type == "cpu":
            config = replace(config, frozen_dtype="float32")
        real, shapes = build_model(config, 0, device).model, build_model(config, 0, META).model
    else:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        real, shapes = (build_random(SIZES[args.size], one, dtype) for one in (device, META))
    found = {modality: compare(real, shapes, modality, args.micro_batch) for modality in real.parts}
    if args.json:
        say_json({"device": str(device), "micro_batch": args.micro_batch, "modalities": found})
        return FINISHED
    rows: list[tuple[str, ...]] = [("modality", "figure", "predicted", "real", "ratio")]
    for modality, figures in found.items():
        rows += [(modality, name, *(f"{value:,.4g}" for value in row.values())) for name, row in figures.items()]
    say(f"{args.run_file or args.size} on {device}, micro-batch {args.micro_batch}")
    for line in aligned(rows, 2):
        say(line)
    return FINISHED
