"""The loss terms as functions ``Encoded -> 0-dim loss``, one for each row of ``rb/core/loss_terms.py``; ``RegionBLIP.forward`` runs them.

The mathematics is in ``losses.py``; here is where its arguments come from. Every term is scaled so that its mean over the micro-batches of
a step, those of all ranks, is the step's value. Shapes: B micro-batch, W pool, P patches, Q query tokens, T text tokens, D Q-Former width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from rb.core import dist
from rb.core.batch import Batch
from rb.model import language, losses
from rb.model.encoded import Encoded
from rb.model.losses import LABEL_SMOOTHING
from rb.model.qformer import joint_pass


def itc(encoded: Encoded) -> Tensor:
    """Image-text contrast within the pool (BLIP-2 stage 1)."""
    cached = encoded.share.cached
    if cached is None:
        pool = encoded.pool
        return losses.itc_loss(*pool.similarities, pool.row_offset, pool.duplicates)
    assert cached.itc is not None
    if cached.gradients is None:
        return cached.itc
    return losses.with_gradients(cached.itc, (*encoded.itc_vectors, encoded.model.heads.temperature), cached.gradients)


def itm(encoded: Encoded) -> Tensor:
    """Image-text matching against hard negatives of the pool (BLIP-2 stage 1).

    Rows: [own image, own text; chosen image, own text; own image, chosen text], each image with the queries of its own box.
    """
    batch, model, negatives = encoded.batch, encoded.model, encoded.negatives
    width = negatives.text_ids.shape[1]
    own_ids, own_mask = batch.text_ids[:, :width], batch.text_mask[:, :width]  # [B, T'], nothing cut off but padding
    joint = joint_pass(
        model.qformer,
        model.text_branch,
        torch.cat([encoded.queries, model.query_tokens(negatives.boxes, len(batch)), encoded.queries]),  # [3B, Q, D]
        model.image_embeds(
            negatives.features
        ),  # [B, P, V]: of the chosen images; the own ones have their keys and values
        torch.cat([own_ids, own_ids, negatives.text_ids]),  # [3B, T']
        torch.cat([own_mask, own_mask, negatives.text_mask]),
        own_keys=encoded.image_keys,
    )  # [3B, Q, D]
    logits = model.heads.itm_head(joint).float().mean(dim=1)  # [3B, 2]
    weights = losses.itm_row_weights(negatives.image_valid, negatives.text_valid)
    return losses.itm_loss(logits, weights, negatives.total_rows, encoded.share.pool_parts)


def itg(encoded: Encoded) -> Tensor:
    """The caption as the Q-Former writes it (BLIP-2 stage 1)."""
    # Logits at places 0..T-2 predict tokens 1..T-1; padding is weighed out, so nothing waits for the device.
    logits = encoded.model.text_branch.logits(encoded.itg_hidden[:, :-1]).float()  # [B, T - 1, vocabulary]
    (ids, mask), share = encoded.batch.texts, encoded.share
    mask = mask[:, 1:].float()
    return losses.token_loss(logits, ids[:, 1:], mask, share.totals["itg"], share.num_parts, LABEL_SMOOTHING)


def llm(encoded: Encoded) -> Tensor:
    """The caption as the LLM writes it (BLIP-2 stage 2)."""
    batch, model, share = encoded.batch, encoded.model, encoded.share
    of_subjects = encoded.query_output if batch.subjects is None else encoded.query_output[batch.subjects]
    soft_prompt = model.soft_prompt(of_subjects)  # [O, Q, L]
    logits, labels, weights = language.predict_captions(model.blip2.language_model, soft_prompt, batch)
    return losses.token_loss(logits.float(), labels, weights, share.totals["llm"], share.num_parts, 0.0)


def reg(encoded: Encoded) -> Tensor:
    """The box, read off the query output (paper section 3.1)."""
    box_head = encoded.model.parts.box_head
    assert box_head is not None
    assert encoded.batch.boxes is not None
    return losses.box_regression_loss(box_head(encoded.query_output), encoded.batch.boxes)


FUNCTIONS: dict[str, Callable[[Encoded], Tensor]] = {"itc": itc, "itm": itm, "itg": itg, "llm": llm, "reg": reg}

# What a term counts in a micro-batch, where a step's value is a mean over something else than samples: tokens.
COUNTS: dict[str, Callable[[Batch], Tensor]] = {
    "itg": lambda batch: batch.text_mask[:, 1:].sum(),
    "llm": lambda batch: batch.llm_mask.sum(),
}


def totals(batches: Sequence[Batch], names: Iterable[str], ranks: dist.Group) -> dict[str, Tensor]:
    """What terms count over a step: this rank's micro-batches and those of the other ranks that make it, 0-dim float32. Collective."""
    counted = [name for name in names if name in COUNTS]
    if not counted:
        return {}
    local = [torch.stack([COUNTS[name](batch) for batch in batches]).sum() for name in counted]
    return dict(zip(counted, dist.all_reduce_sum(torch.stack(local).float(), ranks).unbind(), strict=True))
