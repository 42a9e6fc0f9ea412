"""Tensors in a nest of containers: found, counted, replaced."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

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


def replaced(item: Any, kind: type, by: Callable[[Any], Any]) -> Any:
    """``item`` with ``by(part)`` in the place of each part of a kind; looks where ``tensors_in`` looks, and changes nothing of ``item``.

    Dataclasses are copied without running their ``__post_init__`` again.
    """
    if isinstance(item, kind):
        return by(item)
    if isinstance(item, list | tuple):
        return type(item)([replaced(part, kind, by) for part in item])
    if dataclasses.is_dataclass(item):
        found = copy.copy(item)
        for field in dataclasses.fields(item):
            object.__setattr__(found, field.name, replaced(getattr(item, field.name), kind, by))
        return found
    return item
