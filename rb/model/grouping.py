"""Grouping of point clouds: farthest point sampling and nearest neighbours, as indices.

Always in float32 outside autocast: squared distances rounded to bfloat16 lose 40-70 % of the true neighbours of a room.
Indices only, no weights and no gradients; `point_encoder.py` gathers with them. Shape letters:
B micro-batch, N points, G groups, K points per group.
"""

from __future__ import annotations

import functools
import importlib.util
import logging

import torch
from torch import Tensor

from rb.core import op_costs

try:
    import torch_quickfps
except ImportError:  # optional: the plain loop below needs no package
    torch_quickfps = None

# pointnet2_ops never selects a point whose squared norm is at most this (it marks padding there).
NEAR_ORIGIN_SQUARED = 1e-3
log = logging.getLogger(__name__)
# Largest block of distances kept at once, in elements (128 MB of float32): a scene of 40,000 points goes in pieces.
MAX_DISTANCES = 2**25


@torch.library.custom_op("rb::farthest_points", mutates_args=())
def _one_kernel(points: Tensor, num: int, skip_near_origin: bool) -> Tensor:
    """`farthest_point_sample` by Triton, as one operator that graphs and counters know."""
    from rb.model.sampling_kernel import farthest_points

    return farthest_points(points, num, NEAR_ORIGIN_SQUARED if skip_near_origin else -1.0)


@_one_kernel.register_fake
def _(points: Tensor, num: int, skip_near_origin: bool) -> Tensor:  # noqa: ARG001 (as the operator)
    return points.new_empty(points.shape[0], num, dtype=torch.long)


op_costs.register("rb::farthest_points", launches=1)  # no products of matrices
op_costs.register("torch_quickfps::_sample_idx_impl", launches=1)


@functools.cache
def kernel_problem(device: torch.device) -> str | None:
    """Why the kernel cannot run on a CUDA device, in a few words; none if it can. Runs it once, on five points with ties."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    corners = torch.tensor([[[0.0, 0, 0], [1, 1, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]])
    problem: str | None
    try:
        picks = _one_kernel(corners.to(device), 5, False).cpu()
    except Exception as error:  # noqa: BLE001 (whatever a driver, a compiler or a library of another version raises)
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
    else:
        problem = None if torch.equal(picks, _sample_torch(corners, 5, False)) else "it picks other points than torch"
    if problem is not None:
        log.warning("%s: the kernel for farthest point sampling cannot be used, torch does it: %s", device, problem)
    return problem


def sampling_backends(device: torch.device | str, skip_near_origin: bool = False) -> tuple[str, ...]:
    """What `farthest_point_sample` can use there, default first: "torch", "triton" on CUDA, perhaps "torch_quickfps" on a CPU."""
    device = torch.device(device)
    if device.type == "meta" or (device.type == "cuda" and kernel_problem(device) is None):
        return ("triton", "torch")  # meta stands for CUDA: what is counted there is what runs here
    usable = torch_quickfps is not None and device.type == "cpu" and not skip_near_origin
    return ("torch", "torch_quickfps") if usable else ("torch",)


@torch.no_grad()
def farthest_point_sample(
    points: Tensor, num: int, skip_near_origin: bool = False, backend: str | None = None
) -> Tensor:
    """Indices [B, num] (int64) of points that are each the farthest from those chosen before; the first is index 0.

    Deterministic: fixed start, float32. "torch" and "triton" give ties to the lowest index and repeat index 0 once every
    distinct position is chosen; both give the same indices. "torch_quickfps" is ten times faster on a CPU and gives the same
    indices for clouds without ties; on a lattice, or with fewer distinct positions than `num`, it makes other, equally far
    choices. It is therefore only used when asked for: features must not depend on which packages a machine has.

    Args:
        points: [B, N, 3], any unit, any float type.
        num: number of points to choose, at most N.
        skip_near_origin: never choose points with squared norm <= 1e-3 (except index 0), as the CUDA kernel of
            pointnet2_ops does, with which Point-BERT and ULIP were trained.
        backend: one of `sampling_backends(points.device, skip_near_origin)`; none for the first of them.

    Raises:
        ValueError: wrong shape, more points asked for than given, or a backend that cannot do this.
    """
    if points.ndim != 3 or points.shape[-1] != 3:
        raise ValueError(f"points must be [B, N, 3] coordinates, got {tuple(points.shape)}; pass x y z alone")
    if not 1 <= num <= points.shape[1]:
        raise ValueError(f"cannot sample {num} of {points.shape[1]} points; give clouds of at least {num} points")
    usable = sampling_backends(points.device, skip_near_origin)
    backend = backend or usable[0]
    if backend not in usable:
        raise ValueError(f"sampling backend {backend!r} cannot be used here; use one of {', '.join(usable)}")
    points = points.detach().float()
    if backend == "torch_quickfps":
        return torch_quickfps.sample_idx(points.contiguous(), num, start_idx=0)
    if backend == "triton":
        return _one_kernel(points, num, skip_near_origin)
    return _sample_torch(points, num, skip_near_origin)


def _sample_torch(points: Tensor, num: int, skip_near_origin: bool) -> Tensor:
    """The plain loop, batched over B: seven operations a pick, no host synchronisation."""
    axes = points.permute(2, 0, 1).contiguous()  # [3, B, N]
    nearest = torch.full_like(axes[0], 1e10)  # squared distance to the closest chosen point
    offsets = torch.empty_like(axes)
    dx, dy, dz = offsets.unbind(0)
    if skip_near_origin:  # such points start, and stay, below every other distance
        torch.mul(axes, axes, out=offsets)
        nearest.masked_fill_(dx + dy + dz <= NEAR_ORIGIN_SQUARED, -1.0)
    last = torch.zeros(points.shape[0], 1, dtype=torch.long, device=points.device)
    chosen = [last]
    for _ in range(1, num):
        torch.sub(axes, axes.gather(2, last.expand(3, -1, -1)), out=offsets)
        offsets.mul_(offsets)
        dx.add_(dy).add_(dz)
        torch.minimum(nearest, dx, out=nearest)
        last = nearest.argmax(dim=1, keepdim=True)
        chosen.append(last)
    return torch.cat(chosen, dim=1)


@torch.no_grad()
def knn_group(points: Tensor, centres: Tensor, size: int) -> Tensor:
    """Indices [B, G, size] (int64) of the `size` points nearest to each centre, in no particular order.

    Exact differences, not the |x|^2 - 2xy + |y|^2 expansion: that cancels far from the origin and would run in TF32.
    Memory is bounded: centres go in blocks of at most `MAX_DISTANCES` distances.

    Args:
        points: [B, N, 3].
        centres: [B, G, 3], in the same unit.
        size: K, at most N.

    Raises:
        ValueError: fewer than `size` points.
    """
    num_points = points.shape[1]
    if not 1 <= size <= num_points:
        raise ValueError(f"cannot group {size} of {num_points} points; give clouds of at least {size} points")
    points, centres = points.detach().float(), centres.detach().float()
    block = max(1, MAX_DISTANCES // (points.shape[0] * num_points))
    nearest = []
    with torch.autocast(points.device.type, enabled=False):
        for some in centres.split(block, dim=1):
            distances = torch.cdist(some, points, compute_mode="donot_use_mm_for_euclid_dist")
            nearest.append(distances.topk(size, dim=-1, largest=False, sorted=False).indices)
    return torch.cat(nearest, dim=1)
