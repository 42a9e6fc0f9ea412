"""What decides the frozen features of a modality: its encoder, by digest, with its settings. Features that were stored are known by it.

The digest is of the weights as they are in memory, not of files: the same encoder beside another LLM is the same.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from rb.core import heartbeat
from rb.model.blip2_config import vision_config_of
from rb.model.region_blip import RegionBLIP
from rb.sources.table import source_of

UNKNOWN = "unknown"  # of a model on the meta device, which has no numbers


def encoder_settings(model: RegionBLIP, modality: str) -> dict[str, Any]:
    """Digest, type and settings of the frozen encoder that reads ``modality``, by name, ready for JSON.

    Raises:
        ValueError: the model has no encoder for it.
    """
    if source_of(modality).point_encoder:
        encoder: nn.Module = model.of(modality).points()
        about = asdict(model.of(modality).points().config)
        shape: tuple[Any, ...] = ()
    else:
        encoder = model.blip2.vision_model
        vision = vision_config_of(model.blip2.config)
        # What the weights do not show.
        shape = (vision.num_attention_heads, vision.hidden_act, vision.layer_norm_eps, vision.image_size)
        how = model.normalisation
        about = {"image_mean": list(how.mean), "image_std": list(how.std), "numerics": model.config.numerics}
    dtype = str(next(encoder.parameters()).dtype).removeprefix("torch.")
    return {"encoder": _digest(encoder, shape), "encoder_dtype": dtype, **about}


def _digest(encoder: nn.Module, shape: tuple[Any, ...]) -> str:
    state = hashlib.sha256(repr(shape).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        if tensor.is_meta:
            return UNKNOWN
        state.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        heartbeat.beat()
    return f"sha256:{state.hexdigest()}"
