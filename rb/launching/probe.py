"""A small sum over all ranks of a job, by the process group that training will use: `python -m rb.launching.probe`, once for each rank.

Joins the group that the environment describes (RANK, WORLD_SIZE, MASTER_*), adds three times, and rank 0 prints one JSON line: backend, seconds,
devices and their memory. A rank that fails says who it is and why. Exit codes: 0 the sum is right; 1 a rank did not come, or the sum is wrong; 2 the
environment describes no group.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Sequence

from rb.core import heartbeat
from rb.core.exit_codes import FAILED, FINISHED, WRONG_REQUEST, leave
from rb.core.output import note
from rb.core.strict_json import dumps

TIMEOUT_S = 60.0
TIMES = 3
NUMBERS = 1 << 18  # 1 MiB of float32: more than a packet, less than a second on a slow network


def main(argv: Sequence[str] | None = None) -> int:
    """One rank."""
    parser = argparse.ArgumentParser(prog="rb.launching.probe")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help="seconds to wait for the other ranks")
    args = parser.parse_args(argv)
    who = f"rank {os.environ.get('RANK', '?')} on {socket.gethostname()}"
    if "RANK" not in os.environ:
        note("rb.launching.probe: error: RANK is not set: a launcher starts this")
        return WRONG_REQUEST
    os.environ.setdefault(
        "TORCH_CPP_LOG_LEVEL", "FATAL"
    )  # its errors arrive as exceptions, without pages of stack frames
    try:
        add_up(args.timeout)
    except ValueError as error:
        note(f"{who}: {error}")
        return WRONG_REQUEST
    except (RuntimeError, OSError) as error:  # torch's: no connection, a rank that did not come, a time limit
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        note(f"{who}: {lines[0][:500] if lines else type(error).__name__}")
        return FAILED
    return FINISHED


def add_up(timeout_s: float) -> None:
    """Join, add, compare, tell; raises what torch raises, and ``RuntimeError`` for a wrong sum."""
    heartbeat.begin()
    import torch

    from rb.core import dist

    began = time.monotonic()
    device = dist.device()
    dist.init(timeout_s)
    joined, world = time.monotonic(), dist.world_size()
    seconds = []
    for _ in range(TIMES):
        start = time.monotonic()
        total = dist.all_reduce_sum(torch.full((NUMBERS,), float(dist.rank() + 1), device=device))
        low, high = float(total.min()), float(total.max())
        seconds.append(round(time.monotonic() - start, 4))
        wanted = world * (world + 1) / 2
        if low != wanted or high != wanted:
            raise RuntimeError(f"the sum over {world} ranks is {low:g} to {high:g} where {wanted:g} is right")
    places = dist.gather_objects({"host": socket.gethostname(), **_device(device)})
    if places is not None:
        tree = {
            "ranks": world,
            "backend": "nccl" if device.type == "cuda" else "gloo",
            "join_s": round(joined - began, 3),
            "sum_s": seconds,
            "devices": places,
        }
        sys.stdout.write(dumps(tree) + "\n")
        sys.stdout.flush()
    dist.shutdown()


def _device(device: object) -> dict[str, object]:
    import torch

    if not isinstance(device, torch.device) or device.type != "cuda":
        return {"device": "cpu"}
    free, total = torch.cuda.mem_get_info(device)
    return {"device": torch.cuda.get_device_name(device), "free_mb": free >> 20, "memory_mb": total >> 20}


if __name__ == "__main__":
    leave(main())
