"""Records where each weight of the model came from: a file or a named rule; every weight exactly once."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from rb.core.files import sha256
from rb.model.weights.readers import CheckpointError

FROM = " : "  # between a source (``blip2/model.safetensors``, ``init``) and its key or rule


@dataclass
class Ledger:
    """Origins of weights, kept while a model is built.

    Attributes:
        origins: target name -> where it came from (a file and key, or ``init : RULE``).
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
        keys = list(keys)
        if keys:
            self.unused.setdefault(source, {}).update(dict.fromkeys(keys, reason))

    def missing(self, model: nn.Module) -> list[str]:
        """Saved parameters and buffers of the model that have no origin."""
        return sorted({plain_name(name) for name in model.state_dict()} - set(self.origins))

    def check(self, model: nn.Module) -> None:
        """Every parameter and buffer that is saved must have an origin.

        Raises:
            CheckpointError: lists those that have none.
        """
        missing = self.missing(model)
        extra = sorted(set(self.origins) - {plain_name(name) for name in model.state_dict()})
        if missing:
            raise CheckpointError(f"no file or rule gives these weights: {listing(missing)}")
        assert not extra, f"origins of weights that the model lacks: {listing(extra)}"

    def report(self, model: nn.Module) -> dict[str, Any]:
        """The report as saved in ``weights.json``.

        ``parts``: part -> origin -> numbers; ``tensors`` and ``dtypes``: part -> how many tensors, of which types; ``weights``: a row for
        each weight (origin, shape, dtype); ``unused``: file -> key -> reason; ``missing``: weights without origin, none after ``check``.
        """
        rows: dict[str, Any] = {}
        parts: dict[str, Counter[str]] = {}
        tensors: Counter[str] = Counter()
        dtypes: dict[str, Counter[str]] = {}
        for name, tensor in model.state_dict().items():
            name = plain_name(name)
            origin = self.origins.get(name, "")
            dtype = str(tensor.dtype).removeprefix("torch.")
            rows[name] = {"origin": origin, "shape": list(tensor.shape), "dtype": dtype}
            part = ".".join(name.split(".")[:2])
            parts.setdefault(part, Counter())[origin.split(FROM)[0]] += tensor.numel()
            dtypes.setdefault(part, Counter())[dtype] += 1
            tensors[part] += 1
        return {
            "parts": {part: dict(count) for part, count in parts.items()},
            "tensors": dict(tensors),
            "dtypes": {part: dict(count) for part, count in dtypes.items()},
            "unused": self.unused,
            "missing": self.missing(model),
            "weights": rows,
        }

    def lines(self, model: nn.Module) -> list[str]:
        """The report for a reader: one line for each part, then what was left out and what is missing."""
        report = self.report(model)
        lines = []
        numbers: dict[str, Counter[str]] = {}
        for name, row in report["weights"].items():
            origin = row["origin"] if row["origin"].startswith(f"init{FROM}") else row["origin"].split(FROM)[0]
            numbers.setdefault(".".join(name.split(".")[:2]), Counter())[origin] += math.prod(row["shape"])
        for part, origins in numbers.items():
            sources = ", ".join(f"{origin}: {count:,}" for origin, count in origins.items())
            types = ", ".join(report["dtypes"][part])
            lines.append(f"{part}: {report['tensors'][part]} tensors, {types}; numbers from {sources}")
        for source, keys in self.unused.items():
            for reason, count in Counter(keys.values()).items():
                lines.append(f"not used of {source}: {count} ({reason})")
        missing = report["missing"]
        return [*lines, f"missing: {listing(missing) if missing else 'none'}"]

    def digest(self, model: nn.Module) -> str:
        """Identity of the assembly: origin and shape of every weight, what was left out; not the types, which follow the device."""
        report = self.report(model)
        rows = {name: [row["origin"], row["shape"]] for name, row in report["weights"].items()}
        text = json.dumps([rows, self.unused], sort_keys=True)
        return sha256(text)


def plain_name(name: str) -> str:
    """PEFT wraps a layer that it adapts: ``...query.base_layer.weight`` is still the checkpoint's ``...query.weight``."""
    return name.replace(".base_layer.", ".")


def listing(names: Iterable[str], most: int = 12) -> str:
    """Names for an error message: the first few, and how many more."""
    names = list(names)
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} (and {len(names) - most} more)"
