"""Collectives of rows on 2 and 4 gloo ranks: only wanted rows, several tensors in one gather, the gradient of a gather."""

from __future__ import annotations

import pytest
import torch

from rb.core import dist
from rb.core.exit_codes import leave
from tests.support.processes import finish, start_function_ranks

ROWS = 3


def rank() -> None:
    torch.set_num_threads(1)
    dist.init(timeout_s=60)
    ranks, here = dist.everyone(), dist.rank()
    own = slice(here * ROWS, (here + 1) * ROWS)
    every = ranks.size * ROWS
    generator = torch.Generator().manual_seed(0)  # the same numbers on all ranks

    for dtype in (torch.bfloat16, torch.float32):
        pool = torch.randn(every, 2, 5, generator=generator).to(dtype)
        everyones = (
            torch.randint(every, (ranks.size, ROWS), generator=generator),
            torch.zeros(ranks.size, ROWS, dtype=torch.int64),  # all want the same one
        )
        for wanted in everyones:
            on_host = dist.OnHost(wanted).get()
            assert torch.equal(dist.exchange_rows(pool[own], on_host, ranks), pool[wanted[here]])
            backwards = torch.arange(ROWS).flip(0)
            assert torch.equal(dist.exchange_rows(pool[own].flip(0), on_host, ranks, backwards), pool[wanted[here]])

    pieces = [
        torch.arange(every)[:, None].expand(-1, 3),
        torch.empty(every, 0, dtype=torch.int64),
        torch.randn(every, 2, 3, generator=generator),
        torch.randn(every, generator=generator).bfloat16(),
    ]
    gathered = dist.all_gather_together([piece[own] for piece in pieces], ranks)
    for piece, found in zip(pieces, gathered, strict=True):
        assert found.dtype == piece.dtype
        assert torch.equal(found, piece)

    local = torch.randn(every, 4, generator=generator)[own].requires_grad_()
    weights = torch.randint(-4, 5, (ranks.size, every, 4), generator=generator).float()  # of each rank's loss
    (dist.all_gather_with_grad(local) * weights[here]).sum().backward()
    assert torch.equal(local.grad, weights.sum(0)[own])
    dist.barrier()
    leave(0)


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [2, 4])
def test_rows_of_other_ranks(ranks: int) -> None:
    finish(*start_function_ranks(ranks, rank))
