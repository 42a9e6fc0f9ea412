"""A batch on its way between processes: one block of bytes with the numbers of all its tensors, and what stands around them.

torch's own way makes one file for each tensor, and the receiver fetches each file over a socket. That takes 0.4 ms of processor time a tensor, and a
batch has a dozen of them. A block is one file for the whole batch; the tensors are views of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rb.core.tensors import replaced

_ALIGNED = 64  # bytes: where the numbers of a tensor begin


class _Place(NamedTuple):
    """In the place of a tensor."""

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Packed:
    """A batch whose tensors are in one block.

    Attributes:
        rest: the batch with places instead of tensors.
        block: [bytes] uint8.
    """

    rest: Any
    block: Tensor

    @classmethod
    def of(cls, item: Any) -> Packed:
        """``item``, whose tensors are dense and on the CPU, packed. A tensor that stands at several places is packed once."""
        places: dict[int, _Place] = {}
        tensors: list[Tensor] = []  # held, so that each keeps its id
        end = 0

        def place(tensor: Tensor) -> _Place:
            nonlocal end
            if id(tensor) not in places:
                places[id(tensor)] = _Place(end, tensor.dtype, tuple(tensor.shape))
                tensors.append(tensor)
                end += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
            return places[id(tensor)]

        rest = replaced(item, Tensor, place)
        block = torch.empty(end, dtype=torch.uint8)
        for tensor in tensors:
            _view(block, places[id(tensor)]).copy_(tensor)
        return cls(rest, block)

    def unpacked(self) -> Any:
        """The batch again; its tensors are views of the block."""
        views: dict[_Place, Tensor] = {}

        def view(place: _Place) -> Tensor:
            if place not in views:
                views[place] = _view(self.block, place)
            return views[place]

        return replaced(self.rest, _Place, view)

    def pin_memory(self) -> Packed:
        """As torch's loader asks for it."""
        return Packed(self.rest, self.block.pin_memory())


def _view(block: Tensor, place: _Place) -> Tensor:
    length = math.prod(place.shape) * place.dtype.itemsize
    return block[place.start : place.start + length].view(place.dtype).view(place.shape)
