"""How one optimizer step is divided among ranks and micro-batches, so that its losses do not depend on either.

``allowed_layouts`` lists every division of a step over so many ranks, for ``train.micro_batch_size: auto``.

A step has G samples (global batch) in G / C pools of C consecutive ones: the samples that ITC and ITM contrast with each other. A pool is
k = C / M micro-batches of M samples. With W ranks, g = gcd(k, W) consecutive ranks make one pool, each with k / g micro-batches of it.
Every rank then has the same number of micro-batches, and a rank's part of a pool is consecutive: rows gathered in rank order are in the
order of the step, whatever W and M are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class StepLayout:
    """The division of a step. Sizes count samples.

    Args:
        global_batch_size: of the whole step.
        micro_batch_size: of one forward pass on one rank.
        pool_size: contrasted with each other: a multiple of the micro-batch that divides the global batch.
        world_size: ranks that make the step together.

    Raises:
        ValueError: the sizes do not divide; names them and what would.
    """

    global_batch_size: int
    micro_batch_size: int
    pool_size: int
    world_size: int

    def __post_init__(self) -> None:
        per_pass = self.micro_batch_size * self.world_size
        if self.global_batch_size % per_pass:
            raise ValueError(
                f"train.global_batch_size {self.global_batch_size} is not a multiple of train.micro_batch_size "
                f"{self.micro_batch_size} x {self.world_size} ranks = {per_pass}; choose sizes that divide"
                + ("" if self.global_batch_size % self.world_size else ", or train.micro_batch_size=auto")
            )
        if self.pool_size % self.micro_batch_size or self.global_batch_size % self.pool_size:
            smaller = math.gcd(self.micro_batch_size, self.pool_size)
            fits = self.global_batch_size % self.pool_size == 0
            raise ValueError(
                f"train.contrastive_batch_size {self.pool_size} must be a multiple of train.micro_batch_size "
                f"{self.micro_batch_size} and divide train.global_batch_size {self.global_batch_size}; "
                f"nearest: {' or '.join(map(str, self._nearest_pools()))}"
                + (f"; a run that goes on keeps it: there train.micro_batch_size={smaller}" if fits else "")
            )

    def _nearest_pools(self) -> list[int]:
        """The next allowed pool below and above, where there is one."""
        micro, whole = self.micro_batch_size, self.global_batch_size
        allowed = [size for size in range(micro, whole + 1, micro) if whole % size == 0]
        below, above = [s for s in allowed if s < self.pool_size], [s for s in allowed if s > self.pool_size]
        return below[-1:] + above[:1]

    @property
    def grad_accum_steps(self) -> int:
        """Micro-batches of the step on each rank."""
        return self.num_parts // self.world_size

    @property
    def num_parts(self) -> int:
        """Micro-batches of the step, over all ranks."""
        return self.global_batch_size // self.micro_batch_size

    @property
    def group_size(self) -> int:
        """Consecutive ranks that make a pool together."""
        return math.gcd(self.pool_size // self.micro_batch_size, self.world_size)

    @property
    def pool_passes(self) -> int:
        """Micro-batches of a pool on each rank of its group; more than 1 where one forward pass of the group is smaller than the pool."""
        return self.pool_size // self.micro_batch_size // self.group_size

    def of_one_pool(self) -> StepLayout:
        """A step of one pool, made by one group."""
        return StepLayout(self.pool_size, self.micro_batch_size, self.pool_size, self.group_size)

    def start(self, rank: int, micro_step: int) -> int:
        """Place in the step of the first sample of a rank's micro-batch."""
        turn, part = divmod(micro_step, self.pool_passes)
        group, place = divmod(rank, self.group_size)
        pool = turn * (self.world_size // self.group_size) + group
        return pool * self.pool_size + (place * self.pool_passes + part) * self.micro_batch_size


def allowed_layouts(global_batch_size: int, pool_size: int, world_size: int) -> list[StepLayout]:
    """Every division of a step over so many ranks, the largest micro-batch first.

    Raises:
        ValueError: the global batch does not divide by the ranks, or by the pool; says what would.
    """
    if global_batch_size % world_size:
        near = world_size * max(1, round(global_batch_size / world_size))
        raise ValueError(
            f"train.global_batch_size {global_batch_size} is not a multiple of {world_size} ranks; "
            f"use a number of ranks that divides it, or for a new run train.global_batch_size={near}"
        )
    share = math.gcd(global_batch_size // world_size, pool_size)
    sizes = [size for size in range(share, 0, -1) if share % size == 0]
    return [StepLayout(global_batch_size, size, pool_size, world_size) for size in sizes]
