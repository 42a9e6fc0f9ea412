"""``rb bench fps``: farthest point sampling by each way that this machine has, beside the loop that it was until November 2026.

Says time, processor time and operations a pick of each, and whether all pick the same points (exit code 1 if not). It also says in how many clouds the
groups stay the same points after a turn of a scene's augmentation, in float32: stored groups are used for turned scenes. Clouds are random.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rb.core.device import usable_device
from rb.core.exit_codes import FAILED, FINISHED
from rb.core.output import say, say_json
from rb.core.seeding import generator
from rb.costs.executed import Counter
from rb.model.grouping import farthest_point_sample, sampling_backends
from rb.sources.point_augmentation import scene_motion

BEFORE = "loop of before"


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    device = usable_device(args.device)
    rng = generator("fps", args.points)
    clouds = torch.from_numpy(rng.uniform(-1, 1, (args.clouds, args.points, 3)).astype(np.float32)).to(device)
    ways: dict[str, Callable[[Tensor], Tensor]] = {BEFORE: lambda points: three_axes(points, args.picks)}
    for backend in reversed(sampling_backends(device)):
        ways[backend] = partial(farthest_point_sample, num=args.picks, backend=backend)
    expected = ways[BEFORE](clouds)
    found: dict[str, Any] = {
        "machine": f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, {platform.platform()}",
        "clouds": args.clouds,
        "points": args.points,
        "picks": args.picks,
        "ways": {name: _measured(way, clouds, expected, args) for name, way in ways.items()},
        "turned_clouds_with_equal_picks": _stay(clouds, rng, args.picks),
    }
    if args.json:
        say_json(found)
    else:
        say(found["machine"])
        for name, one in found["ways"].items():
            equal = "equal picks" if one["equal"] else "OTHER PICKS"
            say(
                f"{name}: {one['ms']:.1f} ms a cloud, {one['cpu_ms']:.1f} ms of processor time, {one['operations_a_pick']:.1f} operations a pick; {equal}"
            )
        say(f"after a scene's turn {found['turned_clouds_with_equal_picks']} of {args.clouds} clouds have equal picks")
    return FINISHED if all(one["equal"] for one in found["ways"].values()) else FAILED


def three_axes(points: Tensor, num: int) -> Tensor:
    """The loop of before, without ``skip_near_origin``: fourteen operations a pick. Indices [B, num] for clouds [B, N, 3] of float32."""
    x, y, z = (axis.contiguous() for axis in points.unbind(-1))
    nearest = torch.full_like(x, 1e10)
    chosen = torch.zeros(points.shape[0], num, dtype=torch.long, device=points.device)
    last = chosen[:, :1]
    for step in range(1, num):
        dx, dy, dz = x - x.gather(1, last), y - y.gather(1, last), z - z.gather(1, last)
        nearest = torch.minimum(nearest, dx * dx + dy * dy + dz * dz)
        last = nearest.argmax(dim=1, keepdim=True)
        chosen[:, step : step + 1] = last
    return chosen


def _measured(
    way: Callable[[Tensor], Tensor], clouds: Tensor, expected: Tensor, args: argparse.Namespace
) -> dict[str, Any]:
    with Counter() as counter:
        picks = way(clouds)
    equal = torch.equal(picks, expected)
    wall, cpu = [], []
    for _ in range(args.repeats):
        start, start_cpu = time.perf_counter(), time.process_time()
        way(clouds).cpu()  # waits for the device
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    return {
        "ms": 1e3 * float(np.median(wall)) / len(clouds),
        "cpu_ms": 1e3 * float(np.median(cpu)) / len(clouds),
        "operations_a_pick": counter.found.launches / args.picks,
        "equal": equal,
    }


def _stay(clouds: Tensor, rng: np.random.Generator, picks: int) -> int:
    """Clouds whose picks are the same after a turn."""
    matrix, _ = scene_motion(rng)
    turned = (clouds.double().cpu().numpy() @ matrix.T).astype(np.float32)
    before, after = (
        farthest_point_sample(points, picks).cpu() for points in (clouds, torch.from_numpy(turned).to(clouds.device))
    )
    return int((before == after).all(dim=1).sum())
