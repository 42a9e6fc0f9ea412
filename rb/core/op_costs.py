"""What the project's own operators cost, by name: the one registry from which ``rb bench step --counters`` counts them.

Operators of torch need no entry: each is one launch unless it only makes a view or room for numbers, and torch's own formulas give its
FLOPs (``torch.utils.flop_counter``). An operator of another library (a Triton kernel behind ``torch.library``) hides its launches and FLOPs; one
without an entry ends the count with an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# (positional arguments, keyword arguments, result) of one call -> a number
Formula = Callable[[tuple[Any, ...], dict[str, Any], Any], int]


@dataclass(frozen=True)
class OpCost:
    """Of one call of an operator.

    Attributes:
        launches: kernels on CUDA.
        flops: of products of matrices and attention; other arithmetic counts 0, as everywhere in the counters.
    """

    launches: Formula
    flops: Formula


_COSTS: dict[str, OpCost] = {}


def register(name: str, launches: int | Formula, flops: int | Formula = 0) -> None:
    """State the cost of an operator, where it is defined.

    Args:
        name: with its namespace, without overload: ``rb::farthest_points``.
        launches: kernels on CUDA of one call, or a formula.
        flops: the same for FLOPs.
    """
    _COSTS[name] = OpCost(_formula(launches), _formula(flops))


def cost_of(name: str) -> OpCost | None:
    """What was registered; none for an unknown name."""
    return _COSTS.get(name)


def _formula(given: int | Formula) -> Formula:
    return given if callable(given) else lambda *_: given
