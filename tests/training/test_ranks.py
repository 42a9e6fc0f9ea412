"""One step divided in every way among ranks and micro-batches: the same losses, the same gradients. Real gloo processes, the real model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rb.core import dist
from rb.core.config import FoundationConfig
from rb.core.exit_codes import leave
from rb.core.modality import IMAGE_REGION, POINT_CLOUD
from rb.core.step_layout import StepLayout
from rb.core.text import TextProcessor
from rb.model.region_blip import RegionBLIP
from rb.model.weights.build import build_model, text_processor
from tests.support import tiny
from tests.support.processes import finish, start_function_ranks

Measured = dict[str, torch.Tensor]
WORLD = 4
MODALITIES = (IMAGE_REGION, POINT_CLOUD)
# ranks x micro-batches: 1x8, 1x(4+4), 2x4, 2x(2+2), 4x2, each as (ranks, micro-batch); the first is what the others must equal.
DIVISIONS = ((1, 8), (1, 4), (2, 4), (2, 2), (4, 2))
# global batch, pool, divisions. Pools of 4 and 2 are split into groups of ranks; of pools of 6 on 4 ranks, two ranks make one in three
# passes, because 6 and 4 have the common divisor 2.
CASES = {
    "the global batch": (8, 8, DIVISIONS),
    "half of it": (8, 4, ((1, 4), (1, 2), (2, 4), (2, 2), (4, 2), (4, 1))),
    "pairs": (8, 2, ((1, 2), (2, 2), (4, 2))),
    "six of twelve on four ranks": (12, 6, ((1, 6), (4, 1))),
}


def prepared(foundation: FoundationConfig, **changes: object) -> tuple[RegionBLIP, TextProcessor]:
    config = tiny.model_config(foundation, **changes)
    model, text = build_model(config, seed=0).model, text_processor(config)
    with torch.no_grad():
        for name, parameter in model.trainable_parameters().items():
            if "lora_B" in name:  # zero would hide A's gradient
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return model, text


def measure(model: RegionBLIP, text: TextProcessor, modality: str, layout: StepLayout) -> Measured:
    """Loss terms and gradients of one step, averaged as training averages them; made by groups of the ranks that are there."""
    ranks, batches = dist.group(layout.world_size), []
    for micro_step in range(layout.grad_accum_steps):
        start = layout.start(ranks.rank, micro_step)
        rows = range(start, start + layout.micro_batch_size)
        batches.append(tiny.make_batch(modality, text, rows))
        if (
            modality == IMAGE_REGION
        ):  # rows 0 and 4 show one object: duplicates across ranks and passes must be left out
            batches[-1].object_keys = torch.tensor([0 if row == 4 else row for row in rows])
    model.zero_grad()
    sums: Measured = {}
    for batch, share in model.shares(batches, layout):
        losses = model(batch, share)
        losses.total.backward()
        for name, value in losses.with_total().items():
            sums[f"loss {name}"] = sums.get(f"loss {name}", torch.zeros(())) + value.detach()
    sums |= {f"grad {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {name: dist.all_reduce_sum(value, ranks) / layout.num_parts for name, value in sums.items()}


def worker(foundation: FoundationConfig, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init(timeout_s=60)
    model, text = prepared(foundation)
    found = {
        (case, modality, world, micro): measure(model, text, modality, StepLayout(whole, micro, pool, world))
        for case, (whole, pool, divisions) in CASES.items()
        for modality in MODALITIES
        for world, micro in divisions
    }
    if dist.is_main():
        torch.save(found, out)
    dist.shutdown()
    leave(0)


def differences(found: Measured, expected: Measured) -> dict[str, float]:
    """Relative difference by name, over what is allowed; above 1 is too much."""
    assert found.keys() == expected.keys()
    return {
        name: float((found[name] - value).norm() / value.norm().clamp_min(1e-12))
        / (1e-5 if name.startswith("loss") else 1e-4)
        for name, value in expected.items()
    }


@pytest.mark.dist
def test_a_step_is_the_same_however_it_is_divided(foundation: FoundationConfig, tmp_path: Path) -> None:
    finish(*start_function_ranks(WORLD, worker, foundation, tmp_path / "found.pt"))
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for case, (_, _, divisions) in CASES.items():
        for modality in MODALITIES:
            expected = found[(case, modality, *divisions[0])]
            for world, micro in divisions[1:]:
                apart = differences(found[case, modality, world, micro], expected)
                worst = max(apart, key=lambda name: apart[name])
                print(case, modality, world, micro, worst, apart[worst])
                assert apart[worst] <= 1, f"{case}, {modality}, {world} x {micro}: {worst} {apart[worst]:.1f}"
    assert set(found["pairs", IMAGE_REGION, 1, 2]) > {f"loss {name}" for name in ("itc", "itm", "itg", "llm", "reg")}
