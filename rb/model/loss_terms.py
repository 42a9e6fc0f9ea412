"""The loss terms as functions ``Encoded -> 0-dim loss``, one for each row of ``rb/core/loss_terms.py``; ``RegionBLIP.forward`` runs them.

The mathematics is in ``losses.py``; here is where its arguments come from. Every term is scaled so that its mean over ranks is its value
over the global micro-batch. Shapes: B micro-batch, W gathered batch, P patches, Q query tokens, T text tokens, D Q-Former width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rb.core import dist
from rb.model import language, losses
from rb.model.encoded import Encoded
from rb.model.qformer import joint_pass

LABEL_SMOOTHING = 0.1  # ITC and ITG (LAVIS)


def itc(encoded: Encoded) -> Tensor:
    """Image-text contrast (BLIP-2 stage 1), negatives from all ranks."""
    duplicates = encoded.duplicates if encoded.model.config.itc_mask_duplicates else None
    return losses.itc_loss(*encoded.similarities, encoded.row_offset, duplicates, LABEL_SMOOTHING)


def itm(encoded: Encoded) -> Tensor:
    """Image-text matching against hard negatives (BLIP-2 stage 1).

    Rows: [own image, own text; chosen image, own text; own image, chosen text], each image with the queries of its own box.
    """
    batch, model, gathered = encoded.batch, encoded.model, encoded.gathered
    own = losses.own_column(encoded.duplicates, encoded.row_offset)  # [B, W]
    forbidden = own | encoded.duplicates if model.config.itc_mask_duplicates else own
    if model.config.itm_negatives == "local":
        forbidden = forbidden | ~_same_rank(own)
    sim_i2t, sim_t2i = encoded.similarities
    image_index, image_valid = losses.choose_negatives(sim_t2i.detach(), forbidden, batch.itm_uniforms[:, 0])  # [B]
    text_index, text_valid = losses.choose_negatives(sim_i2t.detach(), forbidden, batch.itm_uniforms[:, 1])
    # Frozen features travel, not projected ones: every rank projects what it chose, so the projection's gradient is right.
    # An all-gather, because an all-to-all of only the chosen rows needs their numbers on the host: one wait per step.
    negative_embeds = model.image_embeds(_take(encoded.features, image_index))
    negative_boxes = None if batch.boxes is None else _take(batch.boxes, image_index)
    negative_queries = model.query_tokens(negative_boxes, len(batch))
    joint = joint_pass(
        model.qformer,
        model.text_branch,
        torch.cat([encoded.queries, negative_queries, encoded.queries]),  # [3B, Q, D]
        torch.cat([encoded.image_embeds, negative_embeds, encoded.image_embeds]),  # [3B, P, V]
        torch.cat([batch.text_ids, batch.text_ids, gathered.text_ids[text_index]]),  # [3B, T]
        torch.cat([batch.text_mask, batch.text_mask, gathered.text_mask[text_index]]),
    )  # [3B, Q, D]
    logits = model.heads.itm_head(joint).float().mean(dim=1)  # [3B, 2]
    valid = losses.itm_row_weights(image_valid, text_valid)
    return losses.itm_loss(logits, valid, dist.all_reduce_sum(valid.sum()), dist.world_size())


def itg(encoded: Encoded) -> Tensor:
    """The caption as the Q-Former writes it (BLIP-2 stage 1)."""
    # Logits at places 0..T-2 predict tokens 1..T-1: a fixed shape, padding weighed out, so nothing waits for the device.
    logits = encoded.model.text_branch.logits(encoded.itg_hidden[:, :-1]).float()  # [B, T - 1, vocabulary]
    mask = encoded.batch.text_mask[:, 1:].float()
    total = dist.all_reduce_sum(mask.sum())
    return losses.token_loss(logits, encoded.batch.text_ids[:, 1:], mask, total, dist.world_size(), LABEL_SMOOTHING)


def llm(encoded: Encoded) -> Tensor:
    """The caption as the LLM writes it (BLIP-2 stage 2)."""
    batch, model = encoded.batch, encoded.model
    soft_prompt = model.soft_prompt(encoded.query_output)
    logits = language.caption_logits(model.blip2.language_model, soft_prompt, batch).float()  # [B, T, vocabulary]
    mask = batch.llm_mask.float()
    return losses.token_loss(logits, batch.llm_ids, mask, dist.all_reduce_sum(mask.sum()), dist.world_size(), 0.0)


def reg(encoded: Encoded) -> Tensor:
    """The box, read off the query output (paper section 3.1)."""
    box_head = encoded.model.parts.box_head
    assert box_head is not None
    assert encoded.batch.boxes is not None
    return losses.box_regression_loss(box_head(encoded.query_output), encoded.batch.boxes)


FUNCTIONS: dict[str, Callable[[Encoded], Tensor]] = {"itc": itc, "itm": itm, "itg": itg, "llm": llm, "reg": reg}


def _take(local: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` [B] of every rank's ``local`` [B, ...]. Collective."""
    return dist.all_gather(local)[index]


def _same_rank(own: Tensor) -> Tensor:
    """[B, W] -> which columns are rows of this rank."""
    return own.any(dim=0).expand_as(own)
