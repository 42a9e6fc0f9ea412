"""The loader's book: for every weight of the model, from which file or named rule it came. Nothing twice, nothing left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from rb.model.weights.readers import CheckpointError


@dataclass
class Ledger:
    """Origins of weights, kept while a model is built.

    Attributes:
        origins: target name -> where it came from (a file and key, or ``init: RULE``).
        unused: source file -> its keys that were left out on purpose, with the reason.
    """

    origins: dict[str, str] = field(default_factory=dict)
    unused: dict[str, dict[str, str]] = field(default_factory=dict)

    def assign(self, target: str, origin: str) -> None:
        """Note one weight; a second note of the same weight is our mistake."""
        assert target not in self.origins, f"{target} assigned twice: {self.origins[target]} and {origin}"
        self.origins[target] = origin

    def leave_out(self, source: str, keys: Iterable[str], reason: str) -> None:
        """Note keys of a file that are not used, and why."""
        self.unused.setdefault(source, {}).update(dict.fromkeys(keys, reason))

    def check(self, model: nn.Module) -> None:
        """Every parameter and buffer that is saved must have an origin.

        Raises:
            CheckpointError: lists those that have none.
        """
        expected = {plain_name(name) for name in model.state_dict()}
        missing, extra = sorted(expected - set(self.origins)), sorted(set(self.origins) - expected)
        if missing:
            raise CheckpointError(f"no file or rule gives these weights: {listing(missing)}")
        assert not extra, f"origins of weights that the model lacks: {listing(extra)}"

    def report(self, model: nn.Module) -> dict[str, Any]:
        """The report as saved in ``weights.json``: per part the count of weights, numbers and dtypes by origin; per weight its row."""
        rows: dict[str, Any] = {}
        parts: dict[str, Counter[str]] = {}
        for name, tensor in model.state_dict().items():
            name = plain_name(name)
            origin = self.origins[name]
            rows[name] = {
                "origin": origin,
                "shape": list(tensor.shape),
                "dtype": str(tensor.dtype).removeprefix("torch."),
            }
            part = ".".join(name.split(".")[:2])
            parts.setdefault(part, Counter())[origin.split(" : ")[0]] += tensor.numel()
        return {"parts": {part: dict(count) for part, count in parts.items()}, "unused": self.unused, "weights": rows}


def plain_name(name: str) -> str:
    """PEFT wraps a layer that it adapts: ``...query.base_layer.weight`` is still the checkpoint's ``...query.weight``."""
    return name.replace(".base_layer.", ".")


def listing(names: Iterable[str], most: int = 12) -> str:
    """Names for an error message: the first few, and how many more."""
    names = list(names)
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} (and {len(names) - most} more)"
