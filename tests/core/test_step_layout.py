"""How a step is divided: every sample once, every pool whole and in order, on any number of ranks; sizes that do not divide."""

from __future__ import annotations

import itertools
import re

import pytest

from rb.core.config import TrainConfig
from rb.core.step_layout import StepLayout


def divisions() -> list[StepLayout]:
    """Every layout with a step of at most 24 samples and at most 6 ranks."""
    found = []
    for whole, micro, pool, world in itertools.product((8, 12, 24), (1, 2, 3, 4), range(1, 25), range(1, 7)):
        if whole % (micro * world) == 0 and pool % micro == 0 and whole % pool == 0:
            found.append(StepLayout(whole, micro, pool, world))
    return found


def test_pools_are_the_same_samples_in_the_same_order_however_a_step_is_divided() -> None:
    assert len(divisions()) > 100
    for layout in divisions():
        size, passes = layout.group_size, layout.pool_passes
        assert size * passes * layout.micro_batch_size == layout.pool_size
        assert layout.world_size % size == layout.grad_accum_steps % passes == 0
        pools = []
        for turn in range(layout.grad_accum_steps // passes):
            for first in range(
                0, layout.world_size, size
            ):  # what a group gathers in rank order, each rank its passes in order
                starts = [
                    layout.start(rank, turn * passes + part)
                    for rank in range(first, first + size)
                    for part in range(passes)
                ]
                pools += [start + i for start in starts for i in range(layout.micro_batch_size)]
        assert pools == list(range(layout.global_batch_size)), layout


def test_one_pass_over_all_ranks_reads_consecutive_samples_as_before_pools_had_a_size() -> None:
    layout = StepLayout(24, 2, 6, 3)
    found = [[layout.start(rank, micro_step) for rank in range(3)] for micro_step in range(4)]
    assert found == [[0, 2, 4], [6, 8, 10], [12, 14, 16], [18, 20, 22]]


def test_a_pool_is_the_global_batch_unless_the_run_says_otherwise() -> None:
    assert TrainConfig(global_batch_size=48, micro_batch_size=8).layout(2).pool_size == 48
    assert TrainConfig(global_batch_size=48, micro_batch_size=8, contrastive_batch_size=16).layout(3).pool_size == 16


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        (12, r"contrastive_batch_size 12 must be a multiple of train.micro_batch_size 8 .*nearest: 8 or 16; .*size=4$"),
        (4, r"contrastive_batch_size 4 .*nearest: 8; .*train.micro_batch_size=4$"),  # smaller than a micro-batch
        (32, r"contrastive_batch_size 32 .* divide train.global_batch_size 48; nearest: 24 or 48$"),
        (96, r"contrastive_batch_size 96 .*nearest: 48$"),
    ],
)
def test_a_pool_that_does_not_divide_is_refused_with_the_nearest(pool: int, said: str) -> None:
    train = TrainConfig(global_batch_size=48, micro_batch_size=8, contrastive_batch_size=pool)
    with pytest.raises(ValueError, match=said) as raised:
        train.layout(2)
    said = str(raised.value)
    nearest = re.findall(r"\d+", said.split("nearest: ")[1].split(";")[0])
    for size in map(int, nearest):  # the remedies work
        assert TrainConfig(global_batch_size=48, micro_batch_size=8, contrastive_batch_size=size).layout(2)
    for micro in map(int, re.findall(r"train\.micro_batch_size=(\d+)", said)):
        assert TrainConfig(global_batch_size=48, micro_batch_size=micro, contrastive_batch_size=pool).layout(2)


def test_a_pool_of_no_samples_is_refused_when_it_is_read() -> None:
    with pytest.raises(ValueError, match=r"train\.contrastive_batch_size: must be at least 1, got 0"):
        TrainConfig(contrastive_batch_size=0)
