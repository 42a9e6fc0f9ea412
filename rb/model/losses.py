"""The losses of RegionBLIP (paper, equation 2) as pure functions of tensors: ITC, ITM, tokens (ITG and LLM) and boxes.

No modules, no communication, no host synchronisation: what others contribute is an argument, and every loss is scaled so that
its mean over the parts of a step (micro-batches of all ranks) is the step's value. ITC and ITM follow BLIP-2's stage 1 (arXiv
2301.12597, section 3.2). Shape letters: B rows of a rank, W rows of the pool (the samples that are contrasted with each other), Q
query tokens, T text tokens, E width of the contrastive space. Row b of a rank is row `row_offset + b` of the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LABEL_SMOOTHING = 0.1  # ITC and ITG (LAVIS)


def own_column(table: Tensor, row_offset: int) -> Tensor:
    """Bool like `table` [B, W]: the column that is the row's own sample."""
    rows = torch.arange(row_offset, row_offset + table.shape[0], device=table.device)
    return rows[:, None] == torch.arange(table.shape[1], device=table.device)


def duplicate_mask(keys: Tensor, all_keys: Tensor, row_offset: int) -> Tensor:
    """[B, W] bool: other samples that are the same in some respect (object, caption, source), so they are not negatives.

    Never true for the row's own column.

    Args:
        keys: [B, respects] int64; equal keys of one respect mean the same.
        all_keys: [W, respects], gathered.
    """
    same = (keys[:, None] == all_keys).any(-1)
    return same & ~own_column(same, row_offset)


def similarities(
    query_features: Tensor,
    text_features: Tensor,
    all_query_features: Tensor,
    all_text_features: Tensor,
    temperature: Tensor,
) -> tuple[Tensor, Tensor]:
    """Image to text and text to image, [B, W] each: maximum over queries, divided by the temperature.

    `itc_loss` contrasts them, `choose_negatives` draws from them.

    Args:
        query_features: [B, Q, E], normalised.
        text_features: [B, E], normalised.
        all_query_features: [W, Q, E], gathered with gradient.
        all_text_features: [W, E], gathered with gradient.
        temperature: [1].
    """
    with torch.autocast(text_features.device.type, enabled=False):  # bfloat16 similarities over 0.07 would be 0.06 off
        queries, texts = query_features.float(), text_features.float()
        sim_i2t = torch.einsum("bqe,we->bwq", queries, all_text_features.float()).amax(-1) / temperature.float()
        sim_t2i = torch.einsum("be,wqe->bwq", texts, all_query_features.float()).amax(-1) / temperature.float()
    return sim_i2t, sim_t2i


def itc_loss(
    sim_i2t: Tensor, sim_t2i: Tensor, row_offset: int, exclude: Tensor | None, label_smoothing: float = LABEL_SMOOTHING
) -> Tensor:
    """Image-text contrast: each row must find its own text among all texts and its own image among all images.

    Args:
        sim_i2t, sim_t2i: [B, W], see `similarities`.
        row_offset: row in the pool of this rank's first row.
        exclude: [B, W] bool, columns that take no part in a row, not in the label smoothing either; see
            `duplicate_mask`. None: all take part.
        label_smoothing: share of the target spread evenly over the columns that take part.
    """
    with torch.autocast(sim_i2t.device.type, enabled=False):
        return (
            _contrast(sim_i2t, row_offset, exclude, label_smoothing)
            + _contrast(sim_t2i, row_offset, exclude, label_smoothing)
        ) / 2


def _contrast(sim: Tensor, row_offset: int, exclude: Tensor | None, label_smoothing: float) -> Tensor:
    """Mean cross-entropy [B, W] -> 0-dim with the own column as target, over the columns that are not excluded."""
    own = own_column(sim, row_offset)
    kept = torch.ones_like(own) if exclude is None else ~exclude | own
    log_probs = F.log_softmax(sim.masked_fill(~kept, -torch.inf), dim=1)
    target = (1.0 - label_smoothing) * own + label_smoothing * kept / kept.sum(1, keepdim=True)
    return -(target * log_probs.masked_fill(~kept, 0.0)).sum(1).mean()


@torch.no_grad()
def choose_negatives(sim: Tensor, forbidden: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """One hard negative for each row, drawn with the probabilities softmax(sim) over the allowed columns.

    A pure function of its arguments: the column where the cumulated probability passes the row's uniform number.

    Args:
        sim: [B, W], any float type; similar columns are likely.
        forbidden: [B, W] bool, includes the row's own column.
        uniforms: [B] in [0, 1).

    Returns:
        (columns [B] int64, valid [B] float32). A row where all is forbidden has valid 0 and some column of the batch.
    """
    allowed = ~forbidden
    scores = sim.double().masked_fill(forbidden, torch.finfo(torch.float64).min)
    probabilities = scores.softmax(1) * allowed
    # A product with a triangle instead of cumsum, which is not deterministic on CUDA.
    cumulated = probabilities @ torch.ones(sim.shape[1], sim.shape[1], dtype=torch.float64, device=sim.device).triu()
    passed = (cumulated > uniforms.double()[:, None] * cumulated[:, -1:]) & allowed
    # `passed` can only be empty by rounding, or where nothing is allowed: then the most similar column.
    columns = torch.where(passed.any(1), passed.int().argmax(1), scores.argmax(1))
    return columns, allowed.any(1).float()


def itm_row_weights(image_valid: Tensor, text_valid: Tensor) -> Tensor:
    """Weights [3B] of the rows of `itm_loss`: positives count always, negatives only where one existed ([B] each)."""
    return torch.cat((torch.ones_like(image_valid), image_valid, text_valid))


def itm_loss(logits: Tensor, weights: Tensor, total_rows: Tensor, num_parts: int) -> Tensor:
    """Image-text matching: cross-entropy with class 1 = match; the plain mean where every row is valid.

    Args:
        logits: [3B, 2], rows [positives; text i with its negative image; image i with its negative text].
        weights: [3B], see `itm_row_weights`.
        total_rows: 0-dim, sum of the weights over the pool.
        num_parts: micro-batches of the pool, of which this loss is averaged later.
    """
    num_pairs, rest = divmod(logits.shape[0], 3)
    assert rest == 0
    labels = (torch.arange(logits.shape[0], device=logits.device) < num_pairs).long()
    return token_loss(logits, labels, weights, total_rows, num_parts, label_smoothing=0.0)


def token_loss(
    logits: Tensor, labels: Tensor, weights: Tensor, total_tokens: Tensor, num_parts: int, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of tokens: ITG (smoothing 0.1) and LLM (0.0), normalised by the number of tokens of the whole step.

    Args:
        logits: [..., vocabulary], any float type.
        labels: [...] int64, any valid id where the weight is 0.
        weights: [...], 1 for a token that counts, 0 for padding.
        total_tokens: 0-dim, sum of the weights over the step; 0 gives loss 0.
        num_parts: micro-batches of the step, of which this loss is averaged later.
        label_smoothing: share of the target spread evenly over the vocabulary.
    """
    losses = F.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), reduction="none", label_smoothing=label_smoothing
    )
    return (losses * weights.flatten()).sum() * num_parts / total_tokens.clamp(min=1)


class _Given(torch.autograd.Function):
    """A value whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        ctx.gradients, ctx.types = gradients, [x.dtype for x in inputs]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        own = [(grad * g).to(dtype) for g, dtype in zip(ctx.gradients, ctx.types, strict=True)]
        return (None, None, *own)


def with_gradients(value: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """A 0-dim loss that is `value`, and whose gradients with respect to `inputs` are `gradients` (GradCache, arXiv 2101.06983)."""
    return _Given.apply(value, gradients, *inputs)


def box_regression_loss(predicted: Tensor, boxes: Tensor) -> Tensor:
    """L1, the mean over rows and coordinates: predicted and true boxes [B, box_dim] (paper, section 3.1)."""
    assert predicted.shape == boxes.shape
    return F.l1_loss(predicted.float(), boxes.float())
