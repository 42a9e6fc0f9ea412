"""The texts of a micro-batch one behind the other, without padding: how an LLM reads them in training.

An LLM's linear layers, norms and embeddings see one row of tokens, [1, N, L]: the contexts of all subjects, then the tokens of all captions. What stands
before several captions of one subject stands in it once. Only attention knows of rows: queries, keys and values are spread to [B, S] for it, and what
it gives is taken back. There each row is its context and its caption, padding is on the right, and attention is causal: so no token that counts
sees padding, and no mask is needed. Exact, with any number of rows for a subject; the padding that is left costs attention alone, 0.2 % of OPT-6.7B.

Used by ``language.py``. Shapes: B rows, O subjects, C context tokens, W the most caption tokens that are read, S = C + W, M caption tokens, N = O C + M.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, T5ForConditionalGeneration
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rb.core.batch import Batch

IMPLEMENTATION = "sdpa_of_packed_texts"  # the name under which transformers finds it


@dataclass(frozen=True)
class Packing:
    """Where the tokens of a row stand in the stream, and the tokens of the stream in rows.

    Attributes:
        shape: (B, S). context: C.
        slots: [B S] int64, the token at each place of the rows; at places of padding any token.
        places: [N] int64, a place of each token; of a context that several rows share, in one of them.
        positions: [1, N] int64, each token's number in its row.
        sharing: [O, B] bool, the rows of each subject; none where O is B.
        subject_rows: [B] int64, the subject of each row; none where O is B.
    """

    shape: tuple[int, int]
    context: int
    slots: Tensor
    places: Tensor
    positions: Tensor
    sharing: Tensor | None
    subject_rows: Tensor | None

    @classmethod
    def of(cls, batch: Batch, context: int) -> Packing:
        """Of contexts of so many tokens, and the captions of a batch. Waits for nothing: all sizes are those of tensors."""
        rows, width = len(batch), batch.llm_ids.shape[1] - 1
        row, column = batch.llm_inputs // (width + 1), batch.llm_inputs % (width + 1)
        numbers = torch.arange(rows, device=row.device)
        of_row = numbers if batch.subject_rows is None else batch.subject_rows
        first = numbers if batch.subjects is None else batch.subjects
        inside = torch.arange(context, device=row.device)
        tokens = len(first) * context + torch.arange(len(row), device=row.device)
        of_captions = torch.zeros(rows * width, dtype=torch.int64, device=row.device)
        of_captions = of_captions.scatter(0, row * width + column, tokens).view(rows, width)
        size = context + width
        return cls(
            shape=(rows, size),
            context=context,
            slots=torch.cat([of_row[:, None] * context + inside, of_captions], dim=1).flatten(),
            places=torch.cat([(first[:, None] * size + inside).flatten(), row * size + context + column]),
            positions=torch.cat([inside.repeat(len(first)), context + column])[None],
            sharing=None if batch.subjects is None else torch.arange(len(first), device=row.device)[:, None] == of_row,
            subject_rows=batch.subject_rows,
        )

    def spread(self, queries: Tensor, *read: Tensor) -> list[Tensor]:
        """Of the stream [1, heads, N, width] each, rows [B, heads, S, width].

        Args:
            queries: of them the places of tokens alone count, one for each.
            read: keys and values, if any: each row reads those of its context. Heads may be fewer.
        """
        every = (queries, *read)
        flat = [tokens.transpose(1, 2).flatten(2).squeeze(0) for tokens in every]  # [N, heads * width]
        widths = [tokens.shape[1] for tokens in flat]
        # One gather for all of them, forward and backward: launches cost more than the bytes of a copy.
        rows = cast(Tensor, _Spread.apply(torch.cat(flat, dim=1) if read else flat[0], self, widths[0]))
        parts = zip(rows.split(widths, dim=1), every, strict=True)
        return [part.view(*self.shape, *tokens.shape[1::2]).transpose(1, 2) for part, tokens in parts]

    def take(self, rows: Tensor) -> Tensor:
        """Of rows [B, S, heads, width], the stream [1, N, heads, width]."""
        return cast(Tensor, _Take.apply(rows.reshape(-1, rows.shape[2] * rows.shape[3]), self)).view(
            1, -1, *rows.shape[2:]
        )

    def for_rows(self, of_subjects: Tensor) -> Tensor:
        """What has a row for each subject, [O, ...], with one for each row, [B, ...]."""
        return of_subjects if self.sharing is None else cast(Tensor, _ForRows.apply(of_subjects, self))

    def summed(self, of_rows: Tensor) -> Tensor:
        """Sums [O, ...] over the rows of each subject, [B, ...]. A product, because adding by index has no fixed order on CUDA."""
        assert self.sharing is not None
        return (self.sharing.to(of_rows.dtype) @ of_rows.flatten(1)).view(-1, *of_rows.shape[1:])


class _Spread(torch.autograd.Function):
    """The stream [N, width] to places [B S, width]; from the column ``read`` on, rows read what stands in one place of the stream."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, packing: Packing, read: int) -> Tensor:
        ctx.packing, ctx.read = packing, read
        return tokens.index_select(0, packing.slots)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Places of padding have no gradient: nothing that counts looks at them.
        packing: Packing = ctx.packing
        own = grad.index_select(0, packing.places)
        if packing.sharing is not None and ctx.read < grad.shape[1]:
            of_contexts = packing.summed(grad.view(*packing.shape, -1)[:, : packing.context, ctx.read :])
            own[: of_contexts.shape[0] * packing.context, ctx.read :] = of_contexts.flatten(0, 1)
        return own, None, None


class _Take(torch.autograd.Function):
    """Places [B S, width] to the stream [N, width]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, packing: Packing) -> Tensor:
        ctx.packing, ctx.size = packing, len(rows)
        return rows.index_select(0, packing.places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad.new_zeros(ctx.size, grad.shape[1]).index_copy_(0, ctx.packing.places, grad), None


class _ForRows(torch.autograd.Function):
    """Of subjects [O, ...] to rows [B, ...]."""

    @staticmethod
    def forward(ctx: Any, of_subjects: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return of_subjects[packing.subject_rows]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.packing.summed(grad), None


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, Tensor | None]:
    """Transformers' SDPA over [B, heads, tokens, width]; with ``packing``, over a stream [1, heads, N, width]."""
    packing: Packing | None = settings.pop("packing", None)
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    bias = settings.pop("position_bias", None)
    causal = bool(getattr(module, "is_causal", True))
    if causal:
        query, key, value = packing.spread(query, key, value)
    else:  # T5's decoder looks at what the encoder read, [O, heads, C of the encoder, width]; the bias is zero there
        (query,) = packing.spread(query)
        key, value, bias = packing.for_rows(key), packing.for_rows(value), None
    # T5's bias is causal already, see `_bias_of_rows`.
    rows, _ = sdpa_attention_forward(module, query, key, value, bias, is_causal=causal and bias is None, **settings)
    return packing.take(rows), None


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def let_pack(language_model: PreTrainedModel) -> None:
    """Let an LLM take ``packing`` as an argument, where it can: see ``packs``. Without the argument it computes what it did."""
    t5 = isinstance(language_model, T5ForConditionalGeneration)
    # Other LLMs do not hand arguments to their attention, or look at places by themselves.
    if language_model.config._attn_implementation != "sdpa" or not (t5 or language_model._supports_attention_backend):  # noqa: SLF001
        return
    language_model.set_attn_implementation(IMPLEMENTATION)
    if t5:
        first = cast(Any, language_model).decoder.block[0].layer[0].SelfAttention
        if _bias_of_rows not in first._forward_pre_hooks.values():  # noqa: SLF001 (asked for again)
            first.register_forward_pre_hook(_bias_of_rows, with_kwargs=True)


def packs(language_model: PreTrainedModel, length: int) -> bool:
    """Whether an LLM takes ``packing`` for rows of so many tokens. A window of attention that is shorter is not modelled here."""
    config = language_model.config
    window = getattr(config, "sliding_window", None)
    return config._attn_implementation == IMPLEMENTATION and (window is None or window >= length)  # noqa: SLF001


def _bias_of_rows(module: Any, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give T5's decoder the bias of relative positions in rows, [1, heads, S, S], where it would compute one of the stream. All layers share it."""
    packing: Packing | None = given.get("packing")
    if packing is not None:
        size = packing.shape[1]
        bias = module.compute_bias(size, size)
        later = torch.ones(size, size, dtype=torch.bool, device=bias.device).triu(1)
        given["position_bias"] = bias.masked_fill(later, torch.finfo(bias.dtype).min)
    return args, given
