"""``rb weights check``: the whole assembly of a run's model from names and shapes alone, and what of it trains. Reads no tensor.

Runs ``build_model`` on the meta device, so that what passes here is what training does. Used by ``commands.py``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from rb.core.config import RunConfig
from rb.model.blip2_config import vision_config_of
from rb.model.region_blip import RegionBLIP
from rb.model.weights.build import build_model


@dataclass(frozen=True)
class CheckReport:
    """What ``rb weights check`` found: the run's name, remarks line by line, trainable numbers by the modalities that use them."""

    run: str
    remarks: list[str]
    trainable: dict[str, int]

    def lines(self) -> list[str]:
        """For a reader, trainable parameters last."""
        counts = [f"  {users}: {count:,}" for users, count in self.trainable.items()]
        return [f"run {self.run}: {self.remarks[0]}", *self.remarks[1:], "trainable parameters:", *counts]


def check_run(config: RunConfig) -> CheckReport:
    """Assemble the run's model from names and shapes.

    Raises:
        ValueError: whatever would stop training from loading: a file, a key, a shape, a tokenizer, the image settings.
    """
    built = build_model(config.model, config.seed, "meta")
    side = built.image_side
    expected = vision_config_of(built.model.blip2.config).image_size
    lines = [f"recipe {config.model.text_branch}, numerics {config.model.numerics}"]
    lines += built.ledger.lines(built.model)
    if side != expected:
        lines.append(f"images: the processor says {side} pixels, the encoder was trained at {expected}")
    lines.append(f"digest of this report: {built.report[:16]}")
    return CheckReport(config.name, lines, trainable_by_users(built.model))


def trainable_by_users(model: RegionBLIP) -> dict[str, int]:
    """Trainable numbers by the modalities that use them: each one's own, then what several share."""
    users, counts = model.parameter_modalities(), Counter[tuple[str, ...]]()
    for name, parameter in model.trainable_parameters().items():
        counts[users[name]] += parameter.numel()
    shown = {}
    for group in sorted(counts, key=len):
        name = group[0] if len(group) == 1 else f"shared by {' and '.join(group)}"
        shown[name] = counts[group]
    return shown
