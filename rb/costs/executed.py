"""What a forward and backward pass executes, by part: FLOPs, launches on a GPU, collectives and the bytes that a rank receives by them.

Every operator that torch dispatches is looked at (``TorchDispatchMode``):

launches     1 for an operator, 0 for one that makes a view of its argument, only makes room (``empty``), or moves nothing. Real kernels may
             differ by a few: a top-k is several, and so is the backward pass of attention.
FLOPs        2 for each multiply-add of products of matrices, convolutions and attention, by torch's own formulas; nothing else counts.
collectives  calls of torch.distributed. Of a rank's n bytes among W ranks it receives (W - 1) n by an all-gather, 2 (W - 1) / W n by an
             all-reduce (as a ring), (W - 1) / W n of its whole input by a reduce-scatter, n by a broadcast; by an all-to-all
             (W - 1) / W of what it ends with, as if that came from all ranks alike.

An operator of neither torch nor ``rb.core.op_costs`` is an error, and so is a product without a formula. The part of a backward operator is
that of the forward operator that made its node of the graph, found by autograd's sequence number.
"""

from __future__ import annotations

import contextlib
import functools
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import addmm_flop, flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from rb.core import dist, op_costs
from rb.core.tensors import num_bytes
from rb.costs.on_meta import replaced
from rb.model import encoded, loss_terms, point_encoder

REST = "rest"
# Operators of torch that launch nothing and do not show it by the alias in their schema.
NO_LAUNCH = frozenset(
    {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "_reshape_alias"}
    | {"detach", "alias", "lift_fresh", "is_same_size", "sym_size", "sym_stride", "sym_numel", "_local_scalar_dense"}
)
TORCH = ("aten", "prim", "prims", "profiler")
# Operators by which the host reads a number or a size off the device, and waits for it.
WAITS = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"})
# Operators of torch that do work of which it has no formula. Over shapes.
# The CPU's kernel of attention computes the scores again in its backward pass, as CUDA's do.
_CPU_KERNEL = "_scaled_dot_product_flash_attention_for_cpu"
LACKING: dict[Any, Callable[..., int]] = {
    torch.ops.aten.addmm_: addmm_flop,
    getattr(torch.ops.aten, _CPU_KERNEL): lambda query, key, value, *_: sdpa_flop_count(query, key, value),
    getattr(torch.ops.aten, f"{_CPU_KERNEL}_backward"): (
        lambda grad, query, key, value, *_: sdpa_backward_flop_count(grad, query, key, value)
    ),
}
_PRODUCT = re.compile(r"mm($|_)|matmul|^mv$|^dot$|conv|attention|bilinear|^linear")


@dataclass
class Counts:
    """Of one part."""

    flops: int = 0
    launches: int = 0
    collectives: int = 0
    received: float = 0.0  # bytes
    waits: int = 0  # how often the host waited for the device


@dataclass
class Executed:
    """What was counted.

    Attributes:
        parts: by name, in the order in which they began.
        names: how often each operator was launched.
    """

    parts: dict[str, Counts] = field(default_factory=lambda: defaultdict(Counts))
    names: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    @property
    def launches(self) -> int:
        """Of all parts together."""
        return sum(one.launches for one in self.parts.values())

    def communication(self) -> Counts:
        """Collectives and bytes of all parts together."""
        parts = self.parts.values()
        return Counts(collectives=sum(one.collectives for one in parts), received=sum(one.received for one in parts))


class Counter(TorchDispatchMode):
    """Counts into ``found`` whatever runs within it; ``part`` says whose it is."""

    def __init__(self) -> None:
        super().__init__()
        self.found = Executed()
        self._part = REST
        self._begins, self._of = [0], [REST]  # the first sequence number of each stretch, and its part

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts what runs within it, and the backward pass of that, for a part."""
        before = self._part
        self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, name: str) -> None:
        self._part = name
        self._begins.append(torch._C._autograd._get_sequence_nr())
        self._of.append(name)

    def _current(self) -> str:
        node = torch._C._current_autograd_node()
        if node is None:
            return self._part
        return self._of[bisect_right(self._begins, node._sequence_nr()) - 1]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        result = func(*args, **named)
        space, name = func._schema.name.split("::")
        counts = self.found.parts[self._current()]
        if space == "c10d":
            counts.collectives += 1
            counts.received += received(name, args)
            return result
        cost = op_costs.cost_of(func._schema.name)
        if cost is not None:
            launches, flops = cost.launches(args, named, result), cost.flops(args, named, result)
        elif space in TORCH:
            launches = int(not _only_views(func) and space == "aten")
            flops = _flops(func, name, args, named, result)
        else:
            raise NotImplementedError(f"operator {func._schema.name} states no cost; rb.core.op_costs.register it")
        counts.launches += launches
        counts.waits += name in WAITS
        counts.flops += flops
        self.found.names[func._schema.name] += launches
        return result


@functools.cache
def _only_views(func: Any) -> bool:
    returns = func._schema.returns
    aliases = bool(returns) and all(one.alias_info is not None and not one.alias_info.is_write for one in returns)
    return aliases or func._schema.name.partition("::")[2] in NO_LAUNCH


def _flops(func: Any, name: str, args: tuple[Any, ...], named: dict[str, Any], result: Any) -> int:
    if func.overloadpacket in LACKING:
        return LACKING[func.overloadpacket](*(one.shape for one in args if isinstance(one, Tensor)))
    formula = flop_registry.get(func.overloadpacket)
    if formula is not None:
        return int(formula(*args, **named, out_val=result))
    if _PRODUCT.search(name):
        raise NotImplementedError(f"operator aten::{name} is a product, and torch has no formula of its FLOPs")
    return 0


def received(name: str, args: tuple[Any, ...]) -> float:
    """Bytes that this rank receives by one call of an operator of c10d."""
    size = next(dist.group_size(argument) for argument in args if isinstance(argument, torch.ScriptObject))
    others = size - 1
    if name.startswith(("allgather", "_allgather")):  # (outputs, inputs, ...)
        return others * num_bytes(args[1])
    if name.startswith(("allreduce", "_allreduce")):
        return 2 * others / size * num_bytes(args[0])
    if name.startswith("alltoall"):  # (output, input, ...)
        return others / size * num_bytes(args[0])
    if name.startswith(("reduce_scatter", "_reduce_scatter")):  # (outputs, inputs, ...)
        return others / size * num_bytes(args[1])
    if name.startswith("broadcast"):
        return float(num_bytes(args[0]))
    if name.startswith("barrier"):
        return 0.0
    raise NotImplementedError(f"collective c10d::{name} has no formula of its bytes")


class ByPart(Protocol):
    """What is told which part runs: a counter, a clock."""

    def part(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Within it, this part runs."""


@contextlib.contextmanager
def by_parts(counter: ByPart) -> Iterator[None]:
    """The model's calls that are parts: encoder with FPS and nearest neighbours, the Q-Former's passes, every loss term."""

    def marked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **named: Any) -> Any:
            with counter.part(name):
                return function(*args, **named)

        return call

    places: list[tuple[Any, str, str]] = [
        (encoded.ModalityModel, "encode", "encoder"),
        (encoded.Encoded, "draw", "itm"),
        (point_encoder, "farthest_point_sample", "fps"),
        (point_encoder, "knn_group", "neighbours"),
        (encoded, "query_pass", "qformer"),
        (encoded, "query_and_text_pass", "qformer"),
        *((loss_terms.FUNCTIONS, term, term) for term in loss_terms.FUNCTIONS),
    ]
    with contextlib.ExitStack() as stack:
        for owner, attribute, part in places:
            before = owner[attribute] if isinstance(owner, dict) else getattr(owner, attribute)
            stack.enter_context(replaced(owner, attribute, marked(part, before)))
        yield
