"""``rb bench plan``: what the plan says of a micro-batch beside what torch counts and the machine takes in a real one, on this device.

The same captions on both sides: lengths drawn as ``rb bench step`` draws them. FLOPs are those of torch's ``FlopCounterMode``, saved bytes those
of the tensors that autograd really keeps. Peak memory is measured as ``rb/costs/real_step.py`` says. Gradients are in it, weights and inputs are not.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch

from rb.core.device import usable_device
from rb.core.exit_codes import FINISHED
from rb.core.output import aligned, figure, say, say_json
from rb.core.run_paths import open_foundation
from rb.costs.executed import Counter
from rb.costs.memory import step_bytes
from rb.costs.meta_model import META
from rb.costs.on_meta import as_on_a_gpu
from rb.costs.random_models import SIZES, build_random
from rb.costs.real_step import give_memory_back, peak_bytes, torch_counter, with_numbers
from rb.costs.typical_batch import typical_batches
from rb.model.region_blip import RegionBLIP
from rb.model.weights.build import build_model


def compare(real: RegionBLIP, shapes: RegionBLIP, modality: str, rows: int) -> dict[str, dict[str, float]]:
    """Figure -> predicted, real, ratio.

    Args:
        real: with numbers. shapes: the same on the meta device.
    """
    batch = with_numbers(next(typical_batches(shapes, modality, rows, 1)), shapes)
    counter = Counter()
    with as_on_a_gpu():
        predicted = step_bytes(shapes, batch.to(META))
        with counter:
            shapes(batch.to(META)).total.backward()
    here = batch.to(real.device)
    with torch_counter() as flops:
        saved = step_bytes(real, here).saved
    real.zero_grad(set_to_none=True)
    peak = peak_bytes(lambda: real(here).total.backward(), real.device)
    counted = sum(part.flops for part in counter.found.parts.values())
    pairs = {"GFLOP": (counted / 1e9, flops.get_total_flops() / 1e9), "saved MB": (predicted.saved / 1e6, saved / 1e6)}
    pairs["peak MB"] = (predicted.peak / 1e6, peak / 1e6)
    return {name: {"predicted": one, "real": other, "ratio": one / other} for name, (one, other) in pairs.items()}


def run(args: argparse.Namespace) -> int:
    """Compare and print."""
    device = usable_device(args.device)
    if device.type == "cpu":
        give_memory_back()
    torch.manual_seed(0)
    if args.run_file:
        run_config = open_foundation(args.run_file, args.overrides)
        config = run_config.model
        if device.type == "cpu":
            config = replace(config, frozen_dtype="float32")
        real, shapes = build_model(config, 0, device).model, build_model(config, 0, META).model
        if run_config.train.activation_checkpointing:
            real.recompute_activations()
            shapes.recompute_activations()
    else:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        real, shapes = (build_random(SIZES[args.size], one, dtype) for one in (device, META))
    found = {modality: compare(real, shapes, modality, args.micro_batch) for modality in real.parts}
    if args.json:
        say_json({"device": str(device), "micro_batch": args.micro_batch, "modalities": found})
        return FINISHED
    rows: list[tuple[str, ...]] = [("modality", "figure", "predicted", "real", "ratio")]
    for modality, figures in found.items():
        rows += [(modality, name, *(figure(value) for value in row.values())) for name, row in figures.items()]
    say(f"{args.run_file or args.size} on {device}, micro-batch {args.micro_batch}")
    for line in aligned(rows, 2):
        say(line)
    return FINISHED
