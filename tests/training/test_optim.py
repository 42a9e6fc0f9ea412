"""The rate, the groups, and that a step moves nothing but the active modality's groups (without DeepSpeed)."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from rb.core.config import OptimConfig
from rb.training.optim import (
    parameter_groups,
    prefill,
    rate_at,
    set_step_count,
    step_count,
    torch_adamw,
)

OPTIM = OptimConfig(lr=1e-2, min_lr=1e-3, warmup_steps=4, warmup_start_lr=1e-4, weight_decay=0.1)
USERS = {
    "image_region.weight": ("image_region",),
    "image_region.bias": ("image_region",),
    "point_cloud.weight": ("point_cloud",),
    "points.weight": ("point_cloud_region", "point_cloud"),
    "points.scale": ("point_cloud", "point_cloud_region"),
}


def parameters() -> dict[str, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shape = {"weight": (3, 2), "bias": (3,), "scale": (1,)}
    return {n: torch.nn.Parameter(torch.randn(shape[n.split(".")[1]], generator=generator)) for n in USERS}


def test_rate_warms_up_from_its_start_and_ends_at_the_floor() -> None:
    rates = [rate_at(step, OPTIM, 24) for step in range(26)]
    assert rates[0] == OPTIM.warmup_start_lr > 0  # the first step is not lost
    assert rates[:4] == pytest.approx([1e-4 + k * (1e-2 - 1e-4) / 4 for k in range(4)])
    assert rates[4] == OPTIM.lr
    assert rates[14] == pytest.approx((OPTIM.lr + OPTIM.min_lr) / 2)
    assert rates[24] == rates[25] == OPTIM.min_lr
    assert all(a > b for a, b in itertools.pairwise(rates[4:25]))
    assert rate_at(0, OptimConfig(warmup_steps=0), 10) == OptimConfig().lr
    assert math.isfinite(rate_at(5, OptimConfig(warmup_steps=200), 10))  # a run shorter than its warm-up


def test_groups_are_keyed_by_users_and_decay() -> None:
    groups = parameter_groups(parameters(), USERS, OPTIM)
    assert [(g["modalities"], g["weight_decay"], g["names"]) for g in groups] == [
        (("image_region",), 0.1, ["image_region.weight"]),
        (("image_region",), 0.0, ["image_region.bias"]),
        (("point_cloud",), 0.1, ["point_cloud.weight"]),
        (("point_cloud", "point_cloud_region"), 0.1, ["points.weight"]),
        (("point_cloud", "point_cloud_region"), 0.0, ["points.scale"]),
    ]
    with pytest.raises(ValueError, match=r"of no modality: \['points.scale'\]"):
        parameter_groups(parameters(), {n: u for n, u in USERS.items() if n != "points.scale"}, OPTIM)
    with pytest.raises(ValueError, match=r"not there: \['ghost'\]"):
        parameter_groups(parameters(), USERS | {"ghost": ("image",)}, OPTIM)
    with pytest.raises(ValueError, match=r"'points\.scale' is trainable but used by no modality"):
        parameter_groups(parameters(), USERS | {"points.scale": ()}, OPTIM)


@pytest.mark.parametrize("fused", [False, True])
def test_idle_groups_stand_still_and_active_ones_move_as_alone(fused: bool) -> None:
    """Turns image_region, point_cloud, image_region with gradients of zero for the idle: as two plain AdamWs, bit by bit."""
    moved, plain = parameters(), parameters()
    optimizer = torch_adamw(parameter_groups(moved, USERS, OPTIM), OPTIM, fused)
    prefill(optimizer)
    alone = {
        name: torch.optim.AdamW([p], lr=1e-2, weight_decay=0.1 if p.ndim > 1 else 0.0, fused=fused)
        for name, p in plain.items()
    }
    generator = torch.Generator().manual_seed(1)
    for turn, modality in enumerate(("image_region", "point_cloud", "image_region", "point_cloud_region")):
        for name, parameter in moved.items():
            active = modality in USERS[name]
            parameter.grad = (
                torch.randn(parameter.shape, generator=generator) if active else torch.zeros_like(parameter)
            )
            plain[name].grad = parameter.grad.clone() if active else None
        optimizer.set_active(modality)
        optimizer.set_rate(rate := 1e-2 / (turn + 1))
        optimizer.step()
        for own in alone.values():
            own.param_groups[0]["lr"] = rate
            own.step()
    for name, parameter in moved.items():
        assert torch.equal(parameter, plain[name]), name
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[parameter][key], alone[name].state[plain[name]][key])
    assert [step_count(optimizer, g) for g in optimizer.param_groups] == [2, 2, 1, 2, 2]
    set_step_count(optimizer, optimizer.param_groups[0], 7)
    assert step_count(optimizer, optimizer.param_groups[0]) == 7


def test_a_step_without_an_active_modality_is_our_mistake() -> None:
    optimizer = torch_adamw(parameter_groups(parameters(), USERS, OPTIM), OPTIM, fused=False)
    with pytest.raises(AssertionError, match="set_active"):
        optimizer.step()


def test_idle_groups_moved_is_what_plain_adamw_does_with_gradients_of_zero() -> None:
    """`optim.idle_groups: moved`, the defect that the ablation measures."""
    defect, plain = parameters(), parameters()
    optimizer = torch_adamw(parameter_groups(defect, USERS, OPTIM), OPTIM, fused=False)
    optimizer.idle_groups_move = True
    usual = torch.optim.AdamW(parameter_groups(plain, USERS, OPTIM), lr=1e-2)
    for modality in ("image_region", "point_cloud"):
        for name in USERS:
            value = float(modality in USERS[name])
            defect[name].grad, plain[name].grad = (torch.full_like(p[name], value) for p in (defect, plain))
        optimizer.set_active(modality)
        before = defect["image_region.weight"].detach().clone()
        optimizer.step()
        usual.step()
    assert all(torch.equal(defect[name], plain[name]) for name in USERS)
    assert not torch.equal(before, defect["image_region.weight"])
