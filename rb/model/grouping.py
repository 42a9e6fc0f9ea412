"""Grouping of point clouds: farthest point sampling and nearest neighbours, as indices.

Always in float32 outside autocast: squared distances rounded to bfloat16 lose 40-70 % of the true neighbours of a room.
Indices only, no weights and no gradients; `point_encoder.py` gathers with them, `rb/inference/cache_groups.py` stores them. Shape letters:
B micro-batch, N points, G groups, K points per group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rb.sources.groups import Grouping

try:
    import torch_quickfps
except ImportError:  # optional: the plain loop below needs no package
    torch_quickfps = None

# pointnet2_ops never selects a point whose squared norm is at most this (it marks padding there).
NEAR_ORIGIN_SQUARED = 1e-3
# Largest block of distances kept at once, in elements (128 MB of float32): a scene of 40,000 points goes in pieces.
MAX_DISTANCES = 2**25


def sampling_backends(device: torch.device | str, skip_near_origin: bool = False) -> tuple[str, ...]:
    """What `farthest_point_sample` can use there, default first: "torch" and perhaps "torch_quickfps"."""
    usable = torch_quickfps is not None and torch.device(device).type == "cpu" and not skip_near_origin
    return ("torch", "torch_quickfps") if usable else ("torch",)


@torch.no_grad()
def farthest_point_sample(points: Tensor, num: int, skip_near_origin: bool = False, backend: str = "torch") -> Tensor:
    """Indices [B, num] (int64) of points that are each the farthest from those chosen before; the first is index 0.

    Deterministic: fixed start, float32. Backend "torch" gives ties to the lowest index and repeats index 0 once every
    distinct position is chosen. "torch_quickfps" is ten times faster on a CPU and gives the same indices for clouds
    without ties; on a lattice, or with fewer distinct positions than `num`, it makes other, equally far choices. It is
    therefore only used when asked for: features must not depend on which packages a machine has.

    Args:
        points: [B, N, 3], any unit, any float type.
        num: number of points to choose, at most N.
        skip_near_origin: never choose points with squared norm <= 1e-3 (except index 0), as the CUDA kernel of
            pointnet2_ops does, with which Point-BERT and ULIP were trained.
        backend: one of `sampling_backends(points.device, skip_near_origin)`.

    Raises:
        ValueError: wrong shape, more points asked for than given, or a backend that cannot do this.
    """
    if points.ndim != 3 or points.shape[-1] != 3:
        raise ValueError(f"points must be [B, N, 3] coordinates, got {tuple(points.shape)}; pass x y z alone")
    if not 1 <= num <= points.shape[1]:
        raise ValueError(f"cannot sample {num} of {points.shape[1]} points; give clouds of at least {num} points")
    usable = sampling_backends(points.device, skip_near_origin)
    if backend not in usable:
        raise ValueError(f"sampling backend {backend!r} cannot be used here; use one of {', '.join(usable)}")
    points = points.detach().float()
    if backend == "torch_quickfps":
        return torch_quickfps.sample_idx(points.contiguous(), num, start_idx=0)
    return _sample_torch(points, num, skip_near_origin)


def _sample_torch(points: Tensor, num: int, skip_near_origin: bool) -> Tensor:
    """The plain loop, batched over B; no host synchronisation."""
    x, y, z = (axis.contiguous() for axis in points.unbind(-1))  # each [B, N]
    nearest = torch.full_like(x, 1e10)  # squared distance to the closest chosen point
    if skip_near_origin:  # such points start, and stay, below every other distance
        nearest = torch.where(x * x + y * y + z * z <= NEAR_ORIGIN_SQUARED, -1.0, nearest)
    chosen = torch.zeros(points.shape[0], num, dtype=torch.long, device=points.device)
    last = chosen[:, :1]
    for step in range(1, num):
        dx, dy, dz = x - x.gather(1, last), y - y.gather(1, last), z - z.gather(1, last)
        nearest = torch.minimum(nearest, dx * dx + dy * dy + dz * dz)
        last = nearest.argmax(dim=1, keepdim=True)
        chosen[:, step : step + 1] = last
    return chosen


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


def group_index(xyz: Tensor, how: Grouping) -> Tensor:
    """Indices [B, G, 1 + K] (int64) of each group in clouds [B, N, 3]: the picked centre, then its nearest points. Errors as of the two steps."""
    picked = farthest_point_sample(xyz, how.num_group, how.skip_near_origin).unsqueeze(-1)  # [B, G, 1]
    centres = xyz.gather(1, picked.expand(-1, -1, 3))
    return torch.cat((picked, knn_group(xyz, centres, how.group_size)), dim=-1)
