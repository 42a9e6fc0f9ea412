"""Ranks and collectives: the only file that touches ``torch.distributed``.

Every function works without a process group too (world size 1), so nothing else asks whether there is one. All ranks must call a
collective; never call one under a rank condition.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor

from rb.core.device import usable_device


def active() -> bool:
    """Whether a process group exists."""
    return torch_dist.is_available() and torch_dist.is_initialized()


def rank() -> int:
    """This process's global rank."""
    return torch_dist.get_rank() if active() else 0


def world_size() -> int:
    """Number of ranks."""
    return torch_dist.get_world_size() if active() else 1


def local_rank() -> int:
    """This process's rank on its host (which device it uses)."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Whether this is rank 0. For side effects (files, logs) only."""
    return rank() == 0


def device() -> torch.device:
    """The device of this rank: its own GPU, or the CPU. ``ValueError`` if ``LOCAL_RANK`` names a GPU that is not there."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    try:
        own = usable_device(f"cuda:{local_rank()}")
    except ValueError as error:
        raise ValueError(f"LOCAL_RANK={local_rank()}: {error}; start as many ranks on a host as it has GPUs") from None
    torch.cuda.set_device(own)
    return own


def init(timeout_s: float = 1800.0) -> None:
    """Join the process group that the launcher's environment describes (RANK, WORLD_SIZE, MASTER_*); nothing to do without one."""
    if active() or "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch_dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))


def set_timeout(timeout_s: float) -> None:
    """How long a collective of any existing group may wait. DeepSpeed makes its own groups with torch's default of 30 minutes."""
    if active():
        for group in list(torch_dist.distributed_c10d._world.pg_map):  # noqa: SLF001 (torch has no public list of groups)
            torch_dist.distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)  # noqa: SLF001


def shutdown() -> None:
    """Leave the process group."""
    if active():
        torch_dist.destroy_process_group()


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        torch_dist.barrier()


class _AllGather(torch.autograd.Function):
    """Concatenate over ranks; the gradient of this rank's slice is the sum of what every rank's loss sends to it."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        ctx.rows = local.shape[0]
        return all_gather(local)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        torch_dist.all_reduce(grad)
        start = rank() * ctx.rows
        return grad[start : start + ctx.rows]


def all_gather(local: Tensor) -> Tensor:
    """[B, ...] on each rank to [W, ...] on all, in rank order, without gradient. Shapes must be equal on all ranks."""
    if world_size() == 1:
        return local.detach()
    local = local.detach().contiguous()
    pieces = [torch.empty_like(local) for _ in range(world_size())]
    torch_dist.all_gather(pieces, local)
    return torch.cat(pieces)


def all_gather_with_grad(local: Tensor) -> Tensor:
    """As ``all_gather``, with gradient to every rank's piece, so that one and two ranks compute the same gradient."""
    return local if world_size() == 1 else _AllGather.apply(local)


def all_reduce_sum(value: Tensor) -> Tensor:
    """The sum over ranks, as a new tensor without gradient."""
    value = value.detach().clone()
    if world_size() > 1:
        torch_dist.all_reduce(value)
    return value


def all_reduce_max(value: Tensor) -> Tensor:
    """The maximum over ranks, as a new tensor without gradient."""
    value = value.detach().clone()
    if world_size() > 1:
        torch_dist.all_reduce(value, op=torch_dist.ReduceOp.MAX)
    return value


def gather_objects(value: object) -> list[Any] | None:
    """Every rank's ``value`` on rank 0 in rank order, none elsewhere. Pickles: only between our own processes."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] | None = [None] * world_size() if is_main() else None
    torch_dist.gather_object(value, gathered)
    return gathered


def broadcast_object(value: Any) -> Any:
    """Rank 0's ``value`` on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    torch_dist.broadcast_object_list(box)
    return box[0]
