"""Models whose adapters say something, and PEFT's own way through their layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from rb.model.region_blip import RegionBLIP


def speak(model: RegionBLIP, std: float = 0.3) -> RegionBLIP:
    """Draw every B, which start at zero, so that each adapter does something else."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=std, generator=generator)
    return model


@contextmanager
def by_peft(model: nn.Module) -> Iterator[None]:
    """Within, every layer has the ``forward`` of its class, not that of ``rb.model.projections``."""
    taken = [(module, module.__dict__.pop("forward")) for module in model.modules() if "forward" in module.__dict__]
    assert taken
    try:
        yield
    finally:
        for module, forward in taken:
            module.forward = forward
