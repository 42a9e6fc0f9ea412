"""ITC vectors of inputs and texts, of a modality that trains: what retrieval, zero-shot classes and the API compare. Q query tokens, E ITC width."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rb.core.text import TextProcessor
from rb.model.region_blip import RegionBLIP

BATCH = 64  # texts of one forward pass


@torch.no_grad()
def query_vectors(
    model: RegionBLIP, modality: str, features: Tensor, boxes: Tensor | None, source_rows: Tensor | None = None
) -> Tensor:
    """Queries [B, Q, E] of length 1, of frozen features [S, ...]; arguments as of ``RegionBLIP.query_output``."""
    output = model.query_output(modality, features, boxes, source_rows).float()
    return F.normalize(model.of(modality).parts.vision_proj(output), dim=-1)


@torch.no_grad()
def text_vectors(model: RegionBLIP, text: TextProcessor, modality: str, texts: Sequence[str]) -> Tensor:
    """Texts [n, E] of length 1, where the model is. They are read as given; training reads them cleaned (``rb.core.text``)."""
    found = []
    for first in range(0, len(texts), BATCH):
        state = model.text_state(modality, *tokens(text, texts[first : first + BATCH], model.device))
        found.append(F.normalize(model.of(modality).heads.text_proj(state.float()), dim=-1))
    return torch.cat(found)


def tokens(text: TextProcessor, texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask of texts for the Q-Former, [n, T] both, without the columns that all leave empty."""
    ids, mask = text.encode_qformer(texts)
    width = int(mask.sum(1).max())
    return ids[:, :width].to(device), mask[:, :width].to(device)


def similarities(queries: Tensor, texts: Tensor) -> Tensor:
    """[n, Q, E] and [m, E] -> [n, m]: the best query's cosine, as ITC trains it."""
    return torch.einsum("nqe,me->nmq", queries, texts).amax(dim=-1)
