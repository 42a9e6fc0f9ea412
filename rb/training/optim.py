"""AdamW over groups of parameters that the same modalities use, and the rate as a function of the step.

Holds: how parameters are grouped, the optimizer whose step moves only the active modality's groups, `rate_at`. Not: DeepSpeed
(`engine.py`). A step of one modality leaves weights, moments and step counters of every group that does not use it
bit-identical: ZeRO gives such groups a gradient of zeros, by which plain AdamW would move them (old momentum, decay).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from rb.core.config import OptimConfig
from rb.core.modality import MODALITIES
from rb.core.optim_config import KEEP, RESTART, STRETCH, Extension

MODALITIES_KEY = "modalities"  # our own entry of a param group; torch and DeepSpeed carry it along
NAMES_KEY = "names"


def rate_at(step: int, optim: OptimConfig, total_steps: int) -> float:
    """The learning rate of optimizer step `step` (from 0) of a run of `total_steps`.

    A straight warm-up, then a cosine (SGDR, arXiv 1608.03983, equation 5) that ends at `total_steps`; in a run that was made longer, what
    `optim.extensions` say (`rb/core/optim_config.py`). Steps from before an extension keep the rate that they had.
    """
    return _extended_rate(step, optim, optim.extensions, total_steps)


def _extended_rate(step: int, optim: OptimConfig, extensions: Sequence[Extension], end: int) -> float:
    """The rate with the first extensions only, the last of which ends at `end`."""
    if not extensions:
        return _cosine(step, optim, end)
    *earlier, last = extensions
    if last.rate == STRETCH and step >= last.from_step:
        return _extended_rate(step, optim, [one for one in earlier if one.rate != KEEP], end)
    if last.rate == RESTART and step >= last.old_steps:
        return _cosine(step - last.old_steps, optim, end - last.old_steps)
    return _extended_rate(step, optim, earlier, last.old_steps)


def _cosine(step: int, optim: OptimConfig, end: int) -> float:
    """Warm-up and cosine from step 0 to `end`; `min_lr` after it."""
    if step < optim.warmup_steps:
        return optim.warmup_start_lr + (optim.lr - optim.warmup_start_lr) * step / optim.warmup_steps
    rest = max(1, end - optim.warmup_steps)
    height = 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - optim.warmup_steps) / rest)))
    return optim.lr * height + optim.min_lr * (1.0 - height)


def parameter_groups(
    parameters: Mapping[str, torch.nn.Parameter],
    modalities_of: Mapping[str, Iterable[str]],
    optim: OptimConfig,
) -> list[dict[str, Any]]:
    """Trainable parameters as param groups keyed by (the set of modalities that use them, decay or not).

    No decay on biases, norms and anything else of fewer than two dimensions (LAVIS, `optims.py`).

    Raises:
        ValueError: the two mappings do not name the same parameters, or a parameter is used by no modality.
    """
    unclaimed, unknown = (
        sorted(set(parameters) - set(modalities_of)),
        sorted(set(modalities_of) - set(parameters)),
    )
    if unclaimed or unknown:
        raise ValueError(
            f"trainable parameters of no modality: {unclaimed}; modalities name what is not there: {unknown}"
        )
    groups: dict[tuple[tuple[str, ...], bool], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        users = tuple(m for m in MODALITIES if m in set(modalities_of[name]))
        if not users:
            raise ValueError(f"parameter {name!r} is trainable but used by no modality")
        decays = parameter.ndim >= 2 and not name.endswith("bias")
        group = groups.setdefault(
            (users, decays),
            {
                "params": [],
                NAMES_KEY: [],
                MODALITIES_KEY: users,
                "weight_decay": optim.weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
        group[NAMES_KEY].append(name)
    return list(groups.values())


class ActiveGroups(torch.optim.Optimizer):
    """Mixed into an optimizer: its `step()` moves only the groups of the active modality; none set is our mistake."""

    active_modality: str | None = None
    idle_groups_move = False  # `optim.idle_groups: moved`, for the ablation only

    def set_active(self, modality: str) -> None:
        """From now on `step()` moves only the parameters that `modality` uses. The same on all ranks."""
        self.active_modality = modality

    def active_groups(self) -> list[int]:
        """The numbers of the groups that `step()` moves; all where `idle_groups_move`."""
        assert self.active_modality is not None, "set_active() comes before step()"
        return [
            index
            for index, group in enumerate(self.param_groups)
            if self.idle_groups_move or self.active_modality in group[MODALITIES_KEY]
        ]

    def set_rate(self, rate: float) -> None:
        """The learning rate of every group."""
        for group in self.param_groups:
            group["lr"] = rate

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of the active groups. DeepSpeed calls this once for each group, alone in `param_groups`."""
        assert closure is None, "a closure would run for every group"
        every = self.param_groups
        self.param_groups = [every[index] for index in self.active_groups()]
        try:
            if self.param_groups:
                super().step()
        finally:
            self.param_groups = every


class ModalityAdamW(ActiveGroups, torch.optim.AdamW):
    """torch's AdamW, moving only the active modality's groups."""


def torch_adamw(groups: list[dict[str, Any]], optim: OptimConfig, fused: bool) -> ModalityAdamW:
    """The default optimizer: torch's AdamW, as one fused kernel where asked."""
    return ModalityAdamW(groups, lr=optim.lr, betas=optim.betas, fused=fused)


def prefill(optimizer: torch.optim.Optimizer) -> None:
    """Moments of zero and a step count of 0 for every parameter, as AdamW itself would begin with at its first step.

    So that a checkpoint has an entry for everything, also for modalities that had no step yet.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        set_step_count(optimizer, group, 0)


def step_count(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> int:
    """How many updates a group had. torch counts for every parameter, DeepSpeed's FusedAdam for the last of a group."""
    return int(optimizer.state[group["params"][-1]]["step"])


def set_step_count(optimizer: torch.optim.Optimizer, group: dict[str, Any], count: int) -> None:
    """The reverse of `step_count`."""
    if not isinstance(optimizer, torch.optim.AdamW):
        for parameter in group["params"]:
            optimizer.state[parameter]["step"] = count
        return
    for parameter in group["params"]:
        # torch keeps the count on the device only where the kernel reads it there.
        device = parameter.device if group["fused"] or group["capturable"] else torch.device("cpu")
        optimizer.state[parameter]["step"] = torch.tensor(float(count), dtype=torch.float32, device=device)
