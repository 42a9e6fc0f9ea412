"""A run's model at full size on the meta device: shapes and types only, no weights needed. Public foundations are known by their names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from rb.core.config import RunConfig
from rb.core.model_config import ModelConfig
from rb.costs.random_models import SIZES, build_random
from rb.model.region_blip import RegionBLIP
from rb.model.weights.build import build_model

META = torch.device("meta")
# The public BLIP-2 folders, by name.
PUBLIC = {
    "blip2-opt-2.7b": "opt_2.7b",
    "blip2-opt-6.7b": "opt_6.7b",
    "blip2-flan-t5-xl": "flant5_xl",
    "blip2-flan-t5-xxl": "flant5_xxl",
}


def training_model_of(config: RunConfig) -> RegionBLIP:
    """As ``model_of``, as the run trains it: with ``train.activation_checkpointing``."""
    model = model_of(config.model)
    if config.train.activation_checkpointing:
        model.recompute_activations()
    return model


def model_of(config: ModelConfig) -> RegionBLIP:
    """A run's model on the meta device, its frozen parts in the type of a GPU.

    Raises:
        ValueError: the foundation is neither here nor named as a public one.
    """
    if config.frozen_dtype == "auto":
        config = replace(config, frozen_dtype="bfloat16")
    folder = Path(config.foundation.blip2)
    if (folder / "config.json").is_file():
        return build_model(config, 0, META).model
    if folder.name not in PUBLIC:
        raise ValueError(
            f"model.foundation.blip2: {folder} does not exist, and {folder.name!r} is none of {', '.join(PUBLIC)}; "
            "name a folder that exists, or one of these"
        )
    dtype = torch.float32 if config.frozen_dtype == "float32" else torch.bfloat16
    with META:
        return build_random(SIZES[PUBLIC[folder.name]], META, dtype, config)
