"""Runs a full-size model without a number: meta tensors, types as autocast makes them on a GPU, attention as one operator.

Things that torch cannot do on its meta device are done here, for the time of a count:

- ``torch.autocast`` refuses the device. Its rule for products (linear, matmul, convolution, attention: cast to bf16; weights that train once
  in a forward pass, frozen ones at each use) is applied at the calls of Python. CUDA's second rule, layer norm, softmax and sums in fp32, is
  left out, as on a CPU: for OPT-6.7B's image step it would add 700 casts to 5,900 launches.
- ``scaled_dot_product_attention`` becomes plain products and a softmax. It is called as the memory-efficient kernel, one operator in
  the forward pass and one in the backward pass, which computes the scores again.
- Numbers that the host reads (``dist.OnHost``) are not there; others are given: chosen captions are as long as the micro-batch's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rb.core import dist

# Names of torch's functions and methods that autocast runs in the lower type on CPU and CUDA alike.
PRODUCTS = frozenset(
    {"linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "addbmm", "mv", "einsum"}
    | {"conv1d", "conv2d", "conv3d", "scaled_dot_product_attention"}
)


class _Autocast:
    """In the place of ``torch.autocast``: says which type products run in, and keeps the casts of one forward pass."""

    types: list[torch.dtype | None] = []  # noqa: RUF012 (of all that are open, the innermost last)
    casts: dict[int, tuple[Tensor, Tensor]] = {}  # noqa: RUF012 (weights that train, with their copies)

    def __init__(self, _device: str, dtype: torch.dtype | None = None, enabled: bool = True) -> None:
        self.dtype = (dtype or torch.bfloat16) if enabled else None
        self._rules = _AsOnAGpu()

    def __enter__(self) -> None:
        self.types.append(self.dtype)
        self._rules.__enter__()  # in a backward pass, where layers may be computed again, those of the count are not in force

    def __exit__(self, *error: Any) -> None:
        self._rules.__exit__(*error)
        self.types.pop()
        if not self.types:
            self.casts.clear()

    @classmethod
    def cast(cls, value: Any) -> Any:
        """A float tensor in the type of products; anything else as it is."""
        dtype = cls.types[-1] if cls.types else None
        if isinstance(value, list | tuple):
            return type(value)(map(cls.cast, value))
        if dtype is None or not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if value.dtype in (dtype, torch.float64):
            return value
        if not (value.requires_grad and value.is_leaf):
            return value.to(dtype)
        if id(value) not in cls.casts:
            cls.casts[id(value)] = value, value.to(dtype)
        return cls.casts[id(value)][1]


class _AsOnAGpu(TorchFunctionMode):
    """The two rules above, at every call of a torch function."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if getattr(func, "__name__", "") in PRODUCTS:
            args = tuple(map(_Autocast.cast, args))
            named = {key: _Autocast.cast(value) for key, value in named.items()}
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **named)
        return func(*args, **named)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:  # several query heads share a key head
        key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], dim=1) for each in (key, value))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
    needs_grad = torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value))
    return torch.ops.aten._scaled_dot_product_efficient_attention(  # noqa: SLF001 (what CUDA calls)
        query, key, value, attn_mask, needs_grad, dropout_p, is_causal, scale=scale
    )[0]


@contextlib.contextmanager
def as_on_a_gpu(text_lengths: Tensor | None = None) -> Iterator[None]:
    """Within it, a model on the meta device runs as this file says.

    Args:
        text_lengths: [B], on the CPU, tokens of the micro-batch's captions; none: 0, 1, 2 ...
    """
    on_host = partial(_OnHost, text_lengths)
    with replaced(torch, "autocast", _Autocast), replaced(dist, "OnHost", on_host), _AsOnAGpu():
        yield


class _OnHost:
    """In the place of ``dist.OnHost``: a vector is of lengths of captions; elsewhere every place has its own number."""

    def __init__(self, text_lengths: Tensor | None, value: Tensor) -> None:
        if text_lengths is not None and value.dim() == 1:
            self._value = text_lengths
        else:
            self._value = torch.arange(value.numel()).view(value.shape)

    def get(self) -> Tensor:
        """Of the same shape."""
        return self._value


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another attribute (or another entry of a dict) for a while."""
    get, put = (dict.__getitem__, dict.__setitem__) if isinstance(owner, dict) else (getattr, setattr)
    before = get(owner, name)
    put(owner, name, value)
    try:
        yield
    finally:
        put(owner, name, before)
