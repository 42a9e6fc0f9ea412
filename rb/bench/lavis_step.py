"""The baseline of ``rb bench step``: a training step as LAVIS and the released RegionBLIP compute it, over weights of ours.

Written anew after BLIP-2's published computation (arXiv 2301.12597; LAVIS's passes are known from its documentation), with plain transformers and
PEFT. The losses are those of ``RegionBLIP.forward``, within rounding; what differs is the work:

- an image or a cloud is encoded for each of its captions;
- the Q-Former makes four passes: queries (whose output ITC and the LLM share, and whose keys and values ITG reuses), the text of ITC, the text of ITG, and
  ITM, which projects keys and values of all its 3 B images again;
- its texts are padded to ``model.max_text_tokens``, the LLM's to the longest of the micro-batch, with the end token as an input;
- logits are computed at every place, and LoRA is PEFT's;
- farthest point sampling is the loop over picks.

Left as ours: no dropout anywhere, one ITC pool and negatives drawn the same way, and the Q-Former's frozen weights in the type of products. One process.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_outputs import BaseModelOutput

from rb.core import dist
from rb.core.batch import Batch, LossTerms
from rb.costs.on_meta import replaced
from rb.model import losses, point_encoder
from rb.model.encoded import ModalityModel
from rb.model.grouping import farthest_point_sample
from rb.model.language import llm_kind
from rb.model.pool import PoolRows
from rb.model.qformer import MASKED, joint_pass, text_pass
from rb.model.region_blip import RegionBLIP

IMPLEMENTATION = "sdpa_with_kept_queries"
Kept = dict[nn.Module, tuple[Tensor, Tensor]]


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    keep: Kept | None = None,
    kept: Kept | None = None,
    **settings: Any,
) -> tuple[Tensor, Tensor | None]:
    """Transformers' SDPA, whose self-attention may keep keys and values, or stand behind kept ones."""
    if not getattr(module, "looks_at_images", False):
        if keep is not None:
            keep[module] = key, value
        if kept is not None:
            key, value = (torch.cat([one, other], dim=2) for one, other in zip(kept[module], (key, value), strict=True))
    return sdpa_attention_forward(module, query, key, value, mask, **settings)


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


class LavisStep:
    """``batch -> LossTerms`` the baseline's way.

    Args:
        model: a model of its own, which loses what this project adds to transformers and PEFT.
        weights: whose numbers it gets.
    """

    def __init__(self, model: RegionBLIP, weights: RegionBLIP) -> None:
        model.load_state_dict(weights.state_dict())
        self.model = model
        for module in model.modules():
            if isinstance(module, LoraLayer | nn.Linear):
                vars(module).pop("forward", None)  # ``rb/model/projections.py`` stands there
        model.blip2.language_model.set_attn_implementation("sdpa")
        for qformer in (model.blip2.qformer, model.point_qformer):
            if qformer is not None:
                qformer.set_attn_implementation(IMPLEMENTATION)

    def __call__(self, batch: Batch) -> LossTerms:
        """All losses that the run's model has, unweighted and their weighted sum."""
        model, names = self.model, self.model.config.terms_of(batch.modality)
        batch = replace(
            batch, inputs=batch.for_samples(batch.inputs), source_rows=None, subject_rows=None, subjects=None
        )
        of = model.of(batch.modality)
        model.adapters.activate(batch.modality)
        lower = model.blip2.language_model.get_input_embeddings().weight.dtype == torch.bfloat16
        loop = partial(farthest_point_sample, backend="torch")
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=lower):
            with replaced(point_encoder, "farthest_point_sample", loop):
                embeds = of.image_embeds(of.features_of(batch))  # [B, P, V]
            queries = of.query_tokens(batch.boxes, len(batch))
            kept: Kept = {}
            output = of.qformer(
                query_embeds=queries, encoder_hidden_states=embeds, keep=kept
            ).last_hidden_state  # [B, Q, D]
            terms = {"llm": self._llm(of, output, batch)} if "llm" in names else {}
            if {"itc", "itm"} & set(names):
                pool = _pool(of, batch, embeds, output)
                terms["itc"] = losses.itc_loss(*pool.similarities, pool.row_offset, pool.duplicates)
                if "itm" in names:
                    terms["itm"] = _itm(of, batch, embeds, queries, pool)
            if "itg" in names:
                terms["itg"] = _itg(of, batch, kept)
            if "reg" in names:
                assert of.parts.box_head is not None
                assert batch.boxes is not None
                terms["reg"] = losses.box_regression_loss(of.parts.box_head(output), batch.boxes)
        terms = {name: terms[name] for name in names}
        weights = model.config.loss_weights
        return LossTerms(terms, torch.stack([weights[name] * term for name, term in terms.items()]).sum())

    def _llm(self, of: ModalityModel, output: Tensor, batch: Batch) -> Tensor:
        """The caption behind the soft prompt, by transformers' own loss."""
        llm = cast(Any, self.model.blip2.language_model)
        embed = llm.get_input_embeddings()
        soft = of.soft_prompt(output).to(embed.weight.dtype)  # [B, Q, L]
        context = torch.cat([soft, embed(batch.prompt_ids).expand(len(batch), -1, -1)], dim=1)
        labels = batch.llm_ids.masked_fill(batch.llm_mask == 0, -100)
        seen = batch.llm_mask.new_ones(context.shape[:2])
        if llm_kind(llm) == "encoder_decoder":
            read = llm.get_encoder()(inputs_embeds=context, attention_mask=seen).last_hidden_state
            return llm(
                encoder_outputs=BaseModelOutput(last_hidden_state=read),
                attention_mask=seen,
                decoder_attention_mask=batch.llm_mask,
                labels=labels,
                use_cache=False,
            ).loss
        return llm(
            inputs_embeds=torch.cat([context, embed(batch.llm_ids)], dim=1),
            attention_mask=torch.cat([seen, batch.llm_mask], dim=1),
            labels=torch.cat([seen.new_full(seen.shape, -100), labels], dim=1),
            use_cache=False,
        ).loss


def _pool(of: ModalityModel, batch: Batch, embeds: Tensor, output: Tensor) -> PoolRows:
    """ITC's vectors, the text by a pass of its own; the pool is the micro-batch."""
    cls = text_pass(of.qformer, of.text_branch, batch.text_ids, batch.text_mask)  # [B, D]
    with torch.autocast(cls.device.type, enabled=False):
        queries = F.normalize(of.parts.vision_proj(output.float()), dim=-1)
        texts = F.normalize(of.heads.text_proj(cls.float()), dim=-1)
    return PoolRows(of.config, dist.group(1), [batch], embeds, queries, texts, of.heads.temperature)


def _itm(of: ModalityModel, batch: Batch, embeds: Tensor, queries: Tensor, pool: PoolRows) -> Tensor:
    """3 B rows, each with its image's keys and values projected again."""
    negatives = pool.negatives()
    to_full = (
        0,
        batch.text_ids.shape[1] - negatives.text_ids.shape[1],
    )  # LAVIS pads every text to the longest that is allowed
    joint = joint_pass(
        of.qformer,
        of.text_branch,
        torch.cat([queries, of.query_tokens(negatives.boxes, len(batch)), queries]),
        torch.cat([embeds, negatives.features, embeds]),
        torch.cat([batch.text_ids, batch.text_ids, F.pad(negatives.text_ids, to_full)]),
        torch.cat([batch.text_mask, batch.text_mask, F.pad(negatives.text_mask, to_full)]),
    )
    logits = of.heads.itm_head(joint).float().mean(dim=1)
    return losses.itm_loss(
        logits, losses.itm_row_weights(negatives.image_valid, negatives.text_valid), negatives.total_rows, 1
    )


def _itg(of: ModalityModel, batch: Batch, kept: Kept) -> Tensor:
    """The caption behind the kept keys and values of the queries; logits at every place."""
    branch, mask = of.text_branch, batch.text_mask
    embeds = branch(branch.generation_ids(batch.text_ids))  # [B, T, D]
    length, queries = mask.shape[1], of.parts.query_tokens.shape[1]
    past = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    seen = F.pad(mask.bool()[:, None, :] & past, (queries, 0), value=True)  # [B, T, Q + T]
    additive = torch.zeros(seen.shape, dtype=embeds.dtype, device=mask.device).masked_fill_(~seen, MASKED)
    hidden = of.qformer(
        query_embeds=embeds, query_length=0, attention_mask=additive[:, None], kept=kept
    ).last_hidden_state
    logits = branch.logits(hidden).float()[:, :-1]
    count = mask[:, 1:].float()
    return losses.token_loss(logits, batch.text_ids[:, 1:], count, count.sum(), 1, losses.LABEL_SMOOTHING)
