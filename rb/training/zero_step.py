"""ZeRO-2's optimizer step over the groups of the active modality, in the place of DeepSpeed's own, which steps over all groups.

DeepSpeed's makes one norm and one gather for every group of parameters, also for groups that the modality of the step does not use, which stay
as they are. Here is one sum for the norms and one gather for the parameters, both of the active groups. What is updated, and how, is DeepSpeed's: its
averaged gradients, its clipping, its flat buffers. `engine.py` puts this step in; `NEEDED` is what it reads of DeepSpeed's optimizer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rb.core import dist
from rb.training.optim import ActiveGroups

NEEDED = (
    "averaged_gradients",
    "all_grad_tensors",
    "single_partition_of_fp32_groups",
    "bit16_groups_flat",
    "flatten",
    "unscale_and_clip_grads",
    "zero_grad",
    "overflow",
    "_global_grad_norm",
    "_optimizer_step",
)


class ZeroStep:
    """Called as DeepSpeed's `step()`.

    Args:
        zero: DeepSpeed's ZeRO-2 optimizer, fp32 without offload.
        optimizer: whose active groups move; group i of one is group i of the other.
    """

    def __init__(self, zero: Any, optimizer: ActiveGroups) -> None:
        self._zero, self._optimizer = zero, optimizer

    def __call__(self) -> None:
        """One update of the active groups, or of none on any rank where a gradient is not finite. Collective."""
        zero, active = self._zero, self._optimizer.active_groups()
        gradients = [zero.flatten(zero.averaged_gradients[index]) for index in active]  # this rank's part of each
        norm = _norm_over_ranks(gradients)
        zero.overflow = not bool(torch.isfinite(norm))  # the only wait for the device
        zero._global_grad_norm = float("inf") if zero.overflow else norm  # noqa: SLF001
        if not zero.overflow:
            zero.unscale_and_clip_grads(gradients, norm)
            for index, gradient in zip(active, gradients, strict=True):
                own = zero.single_partition_of_fp32_groups[index]
                own.grad = gradient
                zero._optimizer_step(index)  # noqa: SLF001
                own.grad = None
            self._gather(active)
        zero.zero_grad(set_to_none=True)
        for index in zero.averaged_gradients:
            zero.averaged_gradients[index] = zero.all_grad_tensors[index] = None

    def _gather(self, active: list[int]) -> None:
        """Every rank's moved parts into the model's parameters, which are views of the flat buffers."""
        own = [self._zero.single_partition_of_fp32_groups[index].detach() for index in active]
        whole = dist.all_gather(torch.cat(own)).view(dist.world_size(), -1)
        for index, pieces in zip(active, whole.split([len(piece) for piece in own], dim=1), strict=True):
            self._zero.bit16_groups_flat[index].view(pieces.shape).copy_(pieces)


def _norm_over_ranks(gradients: list[Tensor]) -> Tensor:
    """The norm of all of them over all ranks, 0-dim float32, rounded as DeepSpeed's: the norm of the groups' norms."""
    squares = torch.stack([torch.linalg.vector_norm(one, dtype=torch.float64).square() for one in gradients])
    return torch.linalg.vector_norm(dist.all_reduce_sum(squares.float()).sqrt())
