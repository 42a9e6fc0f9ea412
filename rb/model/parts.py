"""What is new beside a frozen BLIP-2: a modality's own query tokens, PaFE, projections and heads, or heads that all modalities share.

Only the modules and their sizes; ``region_blip.py`` uses them, ``weights/build.py`` says where their numbers come from (until then
they hold PyTorch's defaults).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import Blip2ForConditionalGeneration

from rb.core.config import ModelConfig
from rb.core.modality import ModalitySpec
from rb.model.blip2_config import llm_config_of, qformer_config_of, vision_config_of
from rb.model.pafe import BoxHead, PaFE

INITIAL_TEMPERATURE = 0.07


@dataclass(frozen=True)
class Sizes:
    """Widths that the parts must agree on, read off the foundation."""

    num_queries: int
    qformer_width: int
    vision_width: int
    llm_width: int
    itc_width: int

    @classmethod
    def of(cls, blip2: Blip2ForConditionalGeneration, itc_width: int) -> Sizes:
        """The sizes of a BLIP-2."""
        config = blip2.config
        return cls(
            num_queries=config.num_query_tokens,
            qformer_width=qformer_config_of(config).hidden_size,
            vision_width=vision_config_of(config).hidden_size,
            llm_width=llm_config_of(config).hidden_size,
            itc_width=itc_width,
        )


class SharedHeads(nn.Module):
    """The heads that the released code has once for all modalities (``model.shared_heads``)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.text_proj = nn.Linear(sizes.qformer_width, sizes.itc_width)
        self.itm_head = nn.Linear(sizes.qformer_width, 2)
        # Shape [1]: DeepSpeed's initialize crashes on a 0-dim parameter.
        self.temperature = nn.Parameter(torch.full((1,), INITIAL_TEMPERATURE))


class ModalityParts(nn.Module):
    """What one trained modality owns beside its adapter."""

    text_proj: nn.Linear  # this and the next two: absent where they are shared
    itm_head: nn.Linear
    temperature: nn.Parameter

    def __init__(self, spec: ModalitySpec, config: ModelConfig, sizes: Sizes) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, sizes.num_queries, sizes.qformer_width))  # [1, Q, D]
        self.language_projection = nn.Linear(sizes.qformer_width, sizes.llm_width)
        self.vision_proj = nn.Linear(sizes.qformer_width, sizes.itc_width)
        if not config.shared_heads:
            for name, head in SharedHeads(sizes).named_children():
                self.add_module(name, head)
            self.temperature = nn.Parameter(torch.full((1,), INITIAL_TEMPERATURE))
        box_dim = config.box_dim(spec.name)
        self.pafe = (
            PaFE(box_dim, sizes.qformer_width, config.pafe_hidden, config.init.pafe)
            if spec.regional and config.pafe
            else None
        )
        self.box_head = BoxHead(sizes.qformer_width, box_dim) if spec.regional else None
