"""Tensors in a nest of containers, and their bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from torch import Tensor


def tensors_in(item: object) -> Iterator[Tensor]:
    """All tensors in ``item``: dataclasses, lists and tuples are looked into."""
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, list | tuple):
        for part in item:
            yield from tensors_in(part)
    elif dataclasses.is_dataclass(item):
        for field in dataclasses.fields(item):
            yield from tensors_in(getattr(item, field.name))


def num_bytes(item: object) -> int:
    """Bytes of all tensors in ``item``."""
    return sum(tensor.nbytes for tensor in tensors_in(item))
