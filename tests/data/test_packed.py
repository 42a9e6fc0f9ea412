"""A batch on its way between processes: the same values, types and shared tensors, in one block."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from rb.data import packed
from rb.data.loading import Batches
from rb.data.packed import Packed


@dataclass(frozen=True)
class Row:
    inputs: Tensor
    name: str


@dataclass
class Nest:
    rows: list[Row]
    numbers: tuple[Tensor, ...]
    none: Tensor | None = None
    made: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.made = sum(int(one.numel()) for one in self.numbers)


def nest() -> Nest:
    shared = torch.arange(12.0).view(3, 4)
    kinds = (torch.bool, torch.uint8, torch.int32, torch.int64, torch.bfloat16, torch.float64)
    numbers = [torch.arange(5).to(kind) for kind in kinds]
    numbers += [torch.tensor(7), torch.zeros(0, 3), shared.T, torch.ones(2, 1).expand(2, 5)]
    return Nest([Row(shared, "a"), Row(shared, "b")], tuple(numbers))


def assert_same(found: Nest, expected: Nest) -> None:
    assert [row.name for row in found.rows] == ["a", "b"]
    assert found.rows[0].inputs is found.rows[1].inputs
    assert torch.equal(found.rows[0].inputs, expected.rows[0].inputs)
    assert [(one.dtype, one.shape) for one in found.numbers] == [(one.dtype, one.shape) for one in expected.numbers]
    assert all(map(torch.equal, found.numbers, expected.numbers))
    assert (found.none, found.made) == (None, expected.made)


def test_values_types_and_shared_tensors_come_back() -> None:
    expected = nest()
    sent = Packed.of(expected)
    found = sent.unpacked()
    assert_same(found, expected)
    assert_same(expected, nest())  # which is not touched
    blocks = {one.untyped_storage().data_ptr() for one in (found.rows[0].inputs, *found.numbers) if one.numel()}
    assert blocks == {sent.block.untyped_storage().data_ptr()}
    assert sent.block.dtype == torch.uint8
    found.numbers[3].add_(1)  # no two tensors share a byte
    assert torch.equal(found.numbers[2], expected.numbers[2])
    assert torch.equal(found.numbers[4], expected.numbers[4])


class Nests(torch.utils.data.Dataset[Nest]):
    def __getitem__(self, _: int) -> Nest:
        return nest()


@pytest.mark.dist
def test_a_loader_process_sends_one_tensor_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    arrived: list[Any] = []
    unpacked = Packed.unpacked
    monkeypatch.setattr(packed.Packed, "unpacked", lambda self: arrived.append(self) or unpacked(self))
    batches = list(Batches(Nests(), range(3), 1, False))
    assert len(arrived) == len(batches) == 3
    for sent, found in zip(arrived, batches, strict=True):
        assert sent.block.is_shared()
        assert_same(found, nest())
