"""Farthest point sampling as one Triton kernel, for CUDA: a program for each cloud, all picks in it. `grouping.py` calls it and has its torch twin.

Importing this file needs triton, which comes with torch for CUDA. Equal picks to the twin need equal rounding: products are rounded before they are
added (``enable_fp_fusion=False``; the compiler would fuse them), and of equal distances the lowest index wins. `tests/model/test_sampling.py` runs it in
Triton's interpreter and looks at the code that it is compiled to. Shape letters: B clouds, N points, G picks.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048  # points that a program looks at together
WARPS = 8


@triton.jit
def pick_farthest(  # type: ignore[no-untyped-def]
    points,  # first of [B, N, 3], any float type and strides
    scratch,  # [B, 4, N] float32: x, y, z, and the squared distance to the nearest pick
    picks,  # [B, G] int64
    num_points,
    num_picks,
    stride_cloud,
    stride_point,
    stride_axis,
    near_origin,  # points of at most this squared norm are not picked; below 0 for all
    BLOCK: tl.constexpr,
):
    """The picks of one cloud; each of its lanes reads and writes its own part of the scratch."""
    cloud = tl.program_id(0).to(tl.int64)
    points += cloud * stride_cloud
    xs = scratch + cloud * 4 * num_points
    ys, zs, nearest = xs + num_points, xs + 2 * num_points, xs + 3 * num_points
    picks += cloud * num_picks
    lanes = tl.arange(0, BLOCK)
    for start in range(0, num_points, BLOCK):
        at = start + lanes
        inside = at < num_points
        x = tl.load(points + at * stride_point, inside, 0.0).to(tl.float32)
        y = tl.load(points + at * stride_point + stride_axis, inside, 0.0).to(tl.float32)
        z = tl.load(points + at * stride_point + 2 * stride_axis, inside, 0.0).to(tl.float32)
        tl.store(xs + at, x, inside)
        tl.store(ys + at, y, inside)
        tl.store(zs + at, z, inside)
        tl.store(nearest + at, tl.where(x * x + y * y + z * z <= near_origin, -1.0, 1e10), inside)
    tl.debug_barrier()  # all lanes read the pick's coordinates
    last = 0
    tl.store(picks, 0)
    for step in range(1, num_picks):
        x0, y0, z0 = tl.load(xs + last), tl.load(ys + last), tl.load(zs + last)
        far = tl.full(
            [BLOCK], -2.0, tl.float32
        )  # of the points that a lane saw: the largest distance, and the first that has it
        place = tl.zeros([BLOCK], tl.int32)
        for start in range(0, num_points, BLOCK):
            at = start + lanes
            inside = at < num_points
            dx = tl.load(xs + at, inside, 0.0) - x0
            dy = tl.load(ys + at, inside, 0.0) - y0
            dz = tl.load(zs + at, inside, 0.0) - z0
            near = tl.minimum(tl.load(nearest + at, inside, -2.0), dx * dx + dy * dy + dz * dz)
            tl.store(nearest + at, near, inside)
            place = tl.where(near > far, at, place)
            far = tl.maximum(near, far)
        last = tl.min(tl.where(far == tl.max(far, 0), place, num_points), 0)
        tl.store(picks + step, last.to(tl.int64))
        tl.debug_barrier()


def farthest_points(points: Tensor, num: int, near_origin: float) -> Tensor:
    """Indices [B, num] (int64) for clouds [B, N, 3]: one launch, and no other.

    Args:
        near_origin: points of at most this squared norm are not picked; below 0 for all.
    """
    batch, num_points, _ = points.shape
    scratch = torch.empty(batch, 4, num_points, dtype=torch.float32, device=points.device)
    picks = torch.empty(batch, num, dtype=torch.long, device=points.device)
    sizes = num_points, num, *points.stride(), near_origin
    pick_farthest[(batch,)](points, scratch, picks, *sizes, BLOCK=BLOCK, num_warps=WARPS, enable_fp_fusion=False)
    return picks
