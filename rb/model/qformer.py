"""How BLIP-2's Q-Former is called: queries, texts and both together, on transformers' own `Blip2QFormerModel`.

Holds the text branch that transformers' generation models lack (embeddings and the head of image-grounded text
generation) and the masks. Used by region_blip.py for training, prediction and zero-shot classification; the losses are
in losses.py, LoRA in adapters.py (the Q-Former may carry it: everything here only calls modules).

The three stage-1 tasks of BLIP-2 (arXiv 2301.12597, figure 2) need two calls, not LAVIS's four: one over
[queries | ITC text | ITG text] with a block mask, one over [queries | text] for ITM. Several rows may look at one image:
its keys and values are computed once (`share_keys`), for both calls (`ImageKeys`). Shape letters: B micro-batch, S images, P patches, Q query tokens,
T text tokens, D Q-Former width, V vision width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Blip2QFormerConfig, Blip2QFormerModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform
from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings, eager_attention_forward

# Additive, in a 4-D float mask: the only form that eager and SDPA attention both take unchanged (bool is silently wrong
# under eager, 3-D crashes, 2-D is inspected on the host). LAVIS's value: exp(-10000) is 0, and every float type has it.
MASKED = -10000.0

# The implementations of attention that a Q-Former may use here, and transformers' own functions behind them.
_PLAIN: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "sdpa": (sdpa_attention_forward, sdpa_mask),
    "eager": (eager_attention_forward, eager_mask),
}


# Keys and values of the images that each row looks at, [B, heads, P, width] both, of every layer that looks at images.
ImageKeys = dict[nn.Module, tuple[Tensor, Tensor]]


def _of_shared_images(implementation: str) -> str:
    """The name under which transformers finds an implementation whose cross-attention takes the arguments below."""
    return f"{implementation}_of_shared_images"


def _register(implementation: str) -> None:
    plain, mask = _PLAIN[implementation]

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        image_rows: Tensor | None = None,
        keep_keys: ImageKeys | None = None,
        own_keys: ImageKeys | None = None,
        **settings: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Over [B, heads, tokens, width]. Self-attention gets the arguments too, and leaves them.

        Args:
            image_rows: [B] int64, which of the S images each row looks at; none: row by row.
            keep_keys: takes what each row looks at.
            own_keys: as kept; the rows are three parts of as many, of which the first and the last look at these, and the second at the images given.
        """
        if getattr(module, "looks_at_images", False):
            if image_rows is not None:
                key, value = key[image_rows], value[image_rows]
            if keep_keys is not None:
                keep_keys.setdefault(module, (key, value))  # a layer that is computed again keeps nothing anew
            if own_keys is not None:
                assert attention_mask is None, "patches are not masked"
                pairs, images, texts = query.chunk(3)
                other, _ = plain(module, images, key, value, None, **settings)  # [B/3, Q, heads, width]
                # Both parts that look at the same images in one call: no copy of keys and values is made, or kept for the backward pass.
                same, _ = plain(module, torch.cat([pairs, texts], dim=2), *own_keys[module], None, **settings)
                of_pairs, of_texts = same.chunk(2, dim=1)
                return torch.cat([of_pairs, other, of_texts]), None
        return plain(module, query, key, value, attention_mask, **settings)

    AttentionInterface.register(_of_shared_images(implementation), attention)
    AttentionMaskInterface.register(_of_shared_images(implementation), mask)


for _implementation in _PLAIN:
    _register(_implementation)


def share_keys(qformer: Blip2QFormerModel, implementation: str = "sdpa") -> None:
    """Let the passes below share keys and values of images. Without their arguments a Q-Former computes what it did."""
    qformer.set_attn_implementation(_of_shared_images(implementation))
    for name, module in qformer.named_modules():
        if name.endswith(".crossattention.attention"):
            module.looks_at_images = True


class TextBranch(nn.Module):
    """Token embeddings [B, T] -> [B, T, D] and the language head [..., D] -> [..., vocabulary], tied by construction.

    The head is BERT's: transform, then the word embeddings as output matrix plus `bias`. The feed-forward layers for
    text are inside the Q-Former (`use_qformer_text_input=True`), as is the LayerNorm of the embeddings.

    Args:
        config: of the Q-Former; `vocab_size` counts [DEC].
        dec_token_id: the id that starts a text to be generated; BLIP-2's [DEC] is the last one, 30522.
    """

    head: Tensor | None

    def __init__(self, config: Blip2QFormerConfig, dec_token_id: int) -> None:
        super().__init__()
        if not 0 <= dec_token_id < config.vocab_size:
            raise ValueError(
                f"dec_token_id {dec_token_id} is outside the Q-Former's vocabulary of {config.vocab_size}; "
                "add [DEC] to the tokenizer and set vocab_size to the tokenizer's length"
            )
        self.dec_token_id = dec_token_id
        self.embeddings = Blip2TextEmbeddings(config)
        self.transform = BertPredictionHeadTransform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.register_buffer("head", None, persistent=False)  # the word embeddings in another type; none: as they are
        for table in (self.embeddings.word_embeddings, self.embeddings.position_embeddings):
            nn.init.normal_(table.weight, std=config.initializer_range)

    def forward(self, text_ids: Tensor) -> Tensor:
        """Embeddings [B, T, D] of tokens [B, T]; positions start at 0."""
        if text_ids.shape[1] > self.embeddings.position_embeddings.num_embeddings:
            raise ValueError(
                f"a text of {text_ids.shape[1]} tokens is longer than the Q-Former's "
                f"{self.embeddings.position_embeddings.num_embeddings} positions; lower max_text_tokens"
            )
        return self.embeddings(text_ids)

    def generation_ids(self, text_ids: Tensor) -> Tensor:
        """The ids [B, T] with the first one ([CLS]) replaced by [DEC]: input of image-grounded text generation."""
        return torch.cat((torch.full_like(text_ids[:, :1], self.dec_token_id), text_ids[:, 1:]), dim=1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [..., vocabulary] of hidden states [..., D]."""
        head = self.embeddings.word_embeddings.weight if self.head is None else self.head
        return F.linear(self.transform(hidden), head, self.bias)

    def round_head(self, dtype: torch.dtype) -> None:
        """Hold the head's weights in `dtype` too, for good: of a frozen branch, whose weights autocast would round at each use."""
        self.head = self.embeddings.word_embeddings.weight.detach().to(dtype)
        self.bias.data = self.bias.data.to(dtype)


class TextPass(NamedTuple):
    """What one masked pass gives; see `query_and_text_pass`."""

    query_output: Tensor  # [B, Q, D]
    text_cls: Tensor  # [B, D]
    itg_hidden: Tensor  # [B, T, D]


def mask_dtype(qformer: Blip2QFormerModel, hidden: Tensor) -> torch.dtype:
    """The type of a mask for a Q-Former that reads `hidden`. SDPA has the one of its products, into which each layer would cast it; eager adds in float32."""
    eager = qformer.config._attn_implementation == _of_shared_images("eager")  # noqa: SLF001
    first: Any = qformer.encoder.layer[0]
    return hidden.dtype if eager else first.output_query.dense.weight.dtype


def block_mask(num_queries: int, text_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask [B, 1, S, S] over [queries | ITC text | ITG text], S = Q + 2T, from `text_mask` [B, T] (1 = token).

    Queries see queries; the ITC text sees itself; the ITG text sees the queries and its own past. Nothing sees padding.
    """
    batch, length = text_mask.shape
    size = num_queries + 2 * length
    present = text_mask.bool()[:, None, :]  # [B, 1, T]
    itc, itg = slice(num_queries, num_queries + length), slice(num_queries + length, size)
    seen = torch.zeros(batch, size, size, dtype=torch.bool, device=text_mask.device)
    seen[:, :num_queries, :num_queries] = True
    seen[:, itc, itc] = present
    seen[:, itg, :num_queries] = True
    seen[:, itg, itg] = present & torch.ones(length, length, dtype=torch.bool, device=text_mask.device).tril()
    return _additive(seen, dtype).unsqueeze(1)


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, MASKED)


def query_pass(
    qformer: Blip2QFormerModel, query_tokens: Tensor, image_embeds: Tensor, image_rows: Tensor | None = None
) -> Tensor:
    """Query output [B, Q, D] of query tokens [B, Q, D] and images [S, P, V]; no text. What the LLM reads.

    Args:
        image_rows: [B] int64, which image each row looks at; none: row by row.
    """
    return qformer(
        query_embeds=query_tokens, encoder_hidden_states=image_embeds, image_rows=image_rows
    ).last_hidden_state


def text_pass(qformer: Blip2QFormerModel, text_branch: TextBranch, text_ids: Tensor, text_mask: Tensor) -> Tensor:
    """The text's [CLS] state [B, D], without any image: class names in zero-shot classification."""
    embeds = text_branch(text_ids)
    mask = _additive(text_mask.bool()[:, None, None, :], mask_dtype(qformer, embeds))  # [B, 1, 1, T]
    return qformer(query_embeds=embeds, query_length=0, attention_mask=mask).last_hidden_state[:, 0]


def query_and_text_pass(
    qformer: Blip2QFormerModel,
    text_branch: TextBranch,
    query_tokens: Tensor,
    image_embeds: Tensor,
    text_ids: Tensor,
    text_mask: Tensor,
    image_rows: Tensor | None = None,
    keep_keys: ImageKeys | None = None,
) -> TextPass:
    """Query output, ITC text and ITG text in one forward; equal to LAVIS's three passes with cached keys and values.

    Args:
        qformer: with `use_qformer_text_input=True`.
        text_branch: embeds the text.
        query_tokens: [B, Q, D], with the box's features added for regions.
        image_embeds: [S, P, V].
        text_ids: [B, T], [CLS] first.
        text_mask: [B, T], 1 where there is a token.
        image_rows: as of `query_pass`.
        keep_keys: takes keys and values of the images, for `joint_pass`.

    Returns:
        `query_output` [B, Q, D], `text_cls` [B, D] and `itg_hidden` [B, T, D]; of the last,
        `text_branch.logits(itg_hidden[:, :-1])` predict `text_ids[:, 1:]`.
    """
    num_queries, length = query_tokens.shape[1], text_ids.shape[1]
    itc_embeds, itg_embeds = text_branch(text_ids), text_branch(text_branch.generation_ids(text_ids))
    hidden = qformer(
        query_embeds=torch.cat((query_tokens.to(itc_embeds.dtype), itc_embeds, itg_embeds), dim=1),
        query_length=num_queries,
        attention_mask=block_mask(num_queries, text_mask, mask_dtype(qformer, itc_embeds)),
        encoder_hidden_states=image_embeds,
        image_rows=image_rows,
        keep_keys=keep_keys,
    ).last_hidden_state
    query_output, itc_hidden, itg_hidden = hidden.split((num_queries, length, length), dim=1)
    return TextPass(query_output, itc_hidden[:, 0], itg_hidden)


def joint_pass(
    qformer: Blip2QFormerModel,
    text_branch: TextBranch,
    query_tokens: Tensor,
    image_embeds: Tensor,
    text_ids: Tensor,
    text_mask: Tensor,
    own_keys: ImageKeys | None = None,
    image_rows: Tensor | None = None,
) -> Tensor:
    """Query states [B, Q, D] after queries and text saw each other: input of the ITM head. Arguments as above.

    Args:
        own_keys: the rows are [pairs; pairs with other images; pairs with other texts], B/3 each; these are the pairs' own images, as the pass
            above kept them, and `image_embeds` [B/3, P, V] are the other images. None: `image_embeds` are of all rows, [B, P, V].
        image_rows: as of `query_pass`, without `own_keys`.
    """
    num_queries = query_tokens.shape[1]
    text_embeds = text_branch(text_ids)
    seen = F.pad(text_mask.bool(), (num_queries, 0), value=True)  # [B, Q + T]
    hidden = qformer(
        query_embeds=torch.cat((query_tokens.to(text_embeds.dtype), text_embeds), dim=1),
        query_length=num_queries,
        attention_mask=_additive(seen[:, None, None, :], mask_dtype(qformer, text_embeds)),
        encoder_hidden_states=image_embeds,
        own_keys=own_keys,
        image_rows=image_rows,
    ).last_hidden_state
    return hidden[:, :num_queries]
