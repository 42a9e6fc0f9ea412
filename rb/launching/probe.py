"""A rank that only computes one small sum with the others: whether the process group of a job works. `python -m rb.launching.probe`."""

from __future__ import annotations

import sys

from rb.core import heartbeat
from rb.core.exit_codes import FAILED, FINISHED, leave


def main() -> int:
    """FINISHED where the sum is right."""
    heartbeat.begin()
    import torch

    from rb.core import dist

    dist.init(60.0)
    found = float(dist.all_reduce_sum(torch.ones(1, device=dist.device())))
    if found != dist.world_size():
        sys.stderr.write(f"rank {dist.rank()}: the sum over {dist.world_size()} ranks is {found}\n")
        return FAILED
    dist.shutdown()
    return FINISHED


if __name__ == "__main__":
    leave(main())
