"""Logits of captions in one order, however the model reads them."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rb.core.batch import Batch
from rb.model.language import predict_captions


def caption_logits(language_model: PreTrainedModel, soft_prompt: Tensor, batch: Batch) -> Tensor:
    """Of all tokens that count, [N, vocabulary], in the order of ``batch.llm_ids[batch.llm_mask.bool()]``."""
    found = predict_captions(language_model, soft_prompt, batch)
    if found.logits.dim() == 3:
        return found.logits[found.weights.bool()]
    firsts = torch.arange(len(batch)) * batch.llm_ids.shape[1]
    order = torch.cat([firsts, batch.llm_inputs + 1]).argsort()
    assert torch.equal(found.labels[order], batch.llm_ids[batch.llm_mask.bool()])
    return found.logits[order]
