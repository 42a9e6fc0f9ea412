"""Activation checkpointing (``train.activation_checkpointing``): of a layer autograd keeps the input alone, and computes the rest again when it goes back.

Layers are those of the Q-Former and of the LLM, as transformers names them (``GradientCheckpointingLayer``). Its own switch works in training mode
only, in which this model never is. Losses and gradients stay bit-equal: the same kernels run on the same numbers. The backward pass costs a forward pass of
these layers more. The encoders have no backward pass, so they keep nothing anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

Again = Callable[[], AbstractContextManager[None]]  # makes what a layer runs within when it is computed again


def recompute_layers(root: nn.Module, remember: Callable[[], Again]) -> None:
    """Checkpoint every layer within ``root``.

    Args:
        remember: called when a layer runs; its result, called when the layer is computed again, gives the context that it runs within.
    """
    for layer in [module for module in root.modules() if isinstance(module, GradientCheckpointingLayer)]:
        layer.forward = partial(_forward, layer.forward, remember)


def _forward(plain: Callable[..., Any], remember: Callable[[], Again], *args: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return plain(*args, **named)
    again = remember()
    # No generator's state is kept: nothing in these layers draws.
    return checkpoint(
        plain,
        *args,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), again()),
        **named,
    )
