"""RegionBLIP: ``forward(batch) -> LossTerms`` and ``generate``; the one place where the parts meet (paper section 3, Fig. 1, eq. 2).

A frozen BLIP-2 and a frozen Point-BERT; per trained modality its own query tokens, PaFE, LoRA, projections and heads. Shapes: B
micro-batch, W gathered batch, P patches, Q query tokens, T text tokens, D Q-Former width, V vision width, L LLM width, E ITC width.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Blip2ForConditionalGeneration, Blip2QFormerModel

from rb.core import dist
from rb.core.batch import Batch, LossTerms
from rb.core.config import DecodeConfig, ModelConfig
from rb.core.modality import modality_spec
from rb.model import language, losses
from rb.model.adapters import Adapters
from rb.model.parts import ModalityParts, SharedHeads, Sizes
from rb.model.point_encoder import PointBert
from rb.model.qformer import TextBranch, joint_pass, query_and_text_pass, query_pass
from rb.sources.table import source_of

LABEL_SMOOTHING = 0.1  # ITC and ITG (LAVIS)


class RegionBLIP(nn.Module):
    """The model. Build it with ``rb.model.weights.build``; the constructor only wires given parts together.

    Args:
        blip2: an intact ``Blip2ForConditionalGeneration`` whose Q-Former has the text feed-forward layers.
        text_branch: the Q-Former's text embeddings and LM head.
        point_encoder: Point-BERT; none where no point modality is used.
        itc_width: width of the ITC space (256).
        seed: keys the adapters' initialisation and the ITM draws.
    """

    def __init__(
        self,
        blip2: Blip2ForConditionalGeneration,
        text_branch: TextBranch,
        point_encoder: PointBert | None,
        config: ModelConfig,
        itc_width: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.blip2 = blip2
        self.text_branch = text_branch
        self.point_encoder = point_encoder
        for frozen in (blip2, text_branch, point_encoder):
            if frozen is not None:
                frozen.requires_grad_(requires_grad=False)
        sizes = Sizes.of(blip2, itc_width)
        trained = [modality_spec(name) for name in config.train_modalities]
        points = [spec.name for spec in trained if source_of(spec.name).point_encoder]
        if points and point_encoder is None:
            raise ValueError(
                f"model.foundation.point_encoder: not given, but {', '.join(points)} in model.train_modalities needs it; "
                "name a Point-BERT folder, or leave the point modalities out"
            )
        self.parts = nn.ModuleDict({spec.name: ModalityParts(spec, config, sizes) for spec in trained})
        self.shared_heads = SharedHeads(sizes) if config.shared_heads and trained else None
        # One for both point modalities: it belongs to the encoder, not to what is asked of it.
        self.point_projection = (
            nn.Linear(point_encoder.config.trans_dim, sizes.vision_width) if points and point_encoder else None
        )
        self.point_qformer: Blip2QFormerModel | None = None
        self.point_text_branch: TextBranch | None = None
        if points and config.point_qformer == "separate":
            # Copies in shape; weights/build.py says where their numbers come from.
            self.point_qformer = copy.deepcopy(blip2.qformer).requires_grad_(requires_grad=True)
            self.point_text_branch = copy.deepcopy(text_branch).requires_grad_(requires_grad=True)
        self.adapters = Adapters(blip2, config.train_modalities, config.lora, seed, self.point_qformer)
        self.train(False)

    def train(self, mode: bool = True) -> RegionBLIP:  # noqa: ARG002 (nn.Module's signature)
        """Frozen parts stay in eval mode for good (no dropout, fixed BatchNorm), and what trains has no dropout either."""
        return super().train(False)

    # -- parameters ---------------------------------------------------------------------------------------------------

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Every trainable parameter by name, in a fixed order."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def parameter_modalities(self) -> dict[str, tuple[str, ...]]:
        """For each trainable parameter the modalities that use it: the key of its optimizer group."""
        return {name: self._users(name) for name in self.trainable_parameters()}

    def _users(self, name: str) -> tuple[str, ...]:
        pieces = name.split(".")
        if pieces[0] in ("point_projection", "point_qformer", "point_text_branch") and "lora_" not in name:
            return tuple(m for m in self.parts if source_of(m).point_encoder)
        if pieces[0] == "shared_heads":
            return tuple(self.parts)
        if pieces[0] == "blip2" and self.config.lora.shared:
            return tuple(self.parts)
        owner = pieces[1] if pieces[0] == "parts" else next((p for p in pieces if p in self.parts), "")
        assert owner in self.parts, f"trainable parameter {name} belongs to no modality"
        return (owner,)

    # -- the way in ---------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.blip2.query_tokens.device

    def _parts_of(self, modality: str) -> ModalityParts:
        return cast("ModalityParts", self.parts[modality])

    def heads_of(self, modality: str) -> ModalityParts | SharedHeads:
        """Where the ``text_proj``, ``itm_head`` and ``temperature`` of a trained modality are."""
        return self._parts_of(modality) if self.shared_heads is None else self.shared_heads

    def qformer_of(self, modality: str) -> tuple[Blip2QFormerModel, TextBranch]:
        """The Q-Former that reads a modality, and its text branch."""
        if self.point_qformer is None or self.point_text_branch is None or not source_of(modality).point_encoder:
            return self.blip2.qformer, self.text_branch
        return self.point_qformer, self.point_text_branch

    def _autocast(self) -> torch.autocast:
        """bf16 where the frozen parts are bf16: what trains and the Q-Former stay in fp32 and are cast per operation."""
        dtype = self.blip2.language_model.get_input_embeddings().weight.dtype
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)

    @torch.no_grad()
    def encode(self, modality: str, inputs: Tensor) -> Tensor:
        """Frozen features: images to [B, P, V], clouds to [B, 1 + G, point width]. Worth caching or exchanging: nothing here trains."""
        return source_of(modality).encode(self, inputs)

    def encode_images(self, images: Tensor) -> Tensor:
        """BLIP-2's vision encoder, [B, 3, H, W] to [B, P, V]; another size than its own by interpolated positions."""
        dtype = self.blip2.vision_model.embeddings.patch_embedding.weight.dtype
        interpolate = images.shape[-1] != self.blip2.config.vision_config.image_size
        return self.blip2.vision_model(images.to(dtype), interpolate_pos_encoding=interpolate).last_hidden_state

    def encode_points(self, points: Tensor) -> Tensor:
        """The point encoder, [B, N, C] to [B, 1 + G, point width]."""
        if self.point_encoder is None or self.point_projection is None:
            raise ValueError("this model has no point encoder, so it cannot read point clouds")
        return self.point_encoder(points)

    def _image_embeds(self, modality: str, features: Tensor) -> Tensor:
        """Frozen features to what the Q-Former's cross-attention reads, [B, P, V]."""
        if not source_of(modality).point_encoder:
            return features
        assert self.point_projection is not None
        return self.point_projection(features.to(self.point_projection.weight.dtype))

    def query_tokens(self, modality: str, boxes: Tensor | None, batch_size: int) -> Tensor:
        """Query tokens with the region's position added, [B, Q, D] (paper section 3.1, PaFE).

        Raises:
            ValueError: a regional modality without boxes, or boxes of another shape.
        """
        if modality not in self.parts:
            return self.blip2.query_tokens.expand(batch_size, -1, -1)
        spec, parts = modality_spec(modality), self._parts_of(modality)
        queries = parts.query_tokens.expand(batch_size, -1, -1)
        if not spec.regional:
            return queries
        expected = (batch_size, self.config.box_dim(modality))
        if boxes is None or boxes.shape != expected:
            shape = None if boxes is None else tuple(boxes.shape)
            raise ValueError(f"{modality} needs boxes of shape {expected}, got {shape}")
        return queries if parts.pafe is None else queries + parts.pafe(boxes)

    # -- training -----------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> LossTerms:
        """All losses of one micro-batch of one modality.

        Every term is scaled so that its mean over ranks is its value over the global micro-batch: token and ITM losses are sums over
        global counts. Terms of weight 0 are not computed.
        """
        weights, parts, spec = self.config.loss_weights, self._parts_of(batch.modality), modality_spec(batch.modality)
        self.adapters.activate(batch.modality)
        wants_itm = weights["itm"] > 0 and batch.modality in self.config.itm_modalities
        wants_text = weights["itc"] > 0 or weights["itg"] > 0 or wants_itm
        terms: dict[str, Tensor] = {}
        with self._autocast():
            features = self.encode(batch.modality, batch.inputs)  # [B, P, V or point width]
            image_embeds = self._image_embeds(batch.modality, features)  # [B, P, V]
            queries = self.query_tokens(batch.modality, batch.boxes, len(batch))  # [B, Q, D]
            qformer, text_branch = self.qformer_of(batch.modality)
            if wants_text:
                passed = query_and_text_pass(
                    qformer, text_branch, queries, image_embeds, batch.text_ids, batch.text_mask
                )
                query_output = passed.query_output  # [B, Q, D]
                terms |= self._text_losses(
                    batch, passed.query_output, passed.text_cls, passed.itg_hidden, queries, image_embeds, features
                )
            else:
                query_output = query_pass(qformer, queries, image_embeds)
            if weights["llm"] > 0:
                terms["llm"] = self._llm_loss(batch, parts.language_projection(query_output))
            if parts.box_head is not None and weights["reg"] > 0:
                assert batch.boxes is not None
                terms["reg"] = losses.box_regression_loss(parts.box_head(query_output), batch.boxes)
        assert terms, f"no loss applies to {batch.modality} ({spec})"
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        return LossTerms(terms, total)

    def _text_losses(
        self,
        batch: Batch,
        query_output: Tensor,
        text_cls: Tensor,
        itg_hidden: Tensor,
        queries: Tensor,
        image_embeds: Tensor,
        features: Tensor,
    ) -> dict[str, Tensor]:
        """ITC, ITM and ITG (BLIP-2's stage-1 losses; LAVIS blip2_qformer), negatives from all ranks."""
        weights, parts, heads = self.config.loss_weights, self._parts_of(batch.modality), self.heads_of(batch.modality)
        terms: dict[str, Tensor] = {}
        gathered = _GatheredText.of(batch)
        row_offset = dist.rank() * len(batch)
        exclude = losses.duplicate_mask(
            batch.object_keys, batch.caption_keys, gathered.object_keys, gathered.caption_keys, row_offset
        )  # [B, W]
        wants_itm = weights["itm"] > 0 and batch.modality in self.config.itm_modalities
        if weights["itc"] > 0 or wants_itm:
            with torch.autocast(self.device.type, enabled=False):
                query_features = F.normalize(parts.vision_proj(query_output.float()), dim=-1)  # [B, Q, E]
                text_features = F.normalize(heads.text_proj(text_cls.float()), dim=-1)  # [B, E]
                itc, sim_i2t, sim_t2i = losses.itc_loss(
                    query_features,
                    text_features,
                    dist.all_gather_with_grad(query_features),
                    dist.all_gather_with_grad(text_features),
                    heads.temperature,
                    row_offset,
                    exclude if self.config.itc_mask_duplicates else None,
                    LABEL_SMOOTHING,
                )
            if weights["itc"] > 0:
                terms["itc"] = itc
        if wants_itm:
            own = losses.own_column(exclude, row_offset)
            forbidden = own | exclude if self.config.itc_mask_duplicates else own
            if self.config.itm_negatives == "local":
                forbidden = forbidden | ~_same_rank(own)
            terms["itm"] = self._itm_loss(
                batch, gathered, forbidden, sim_t2i.detach(), sim_i2t.detach(), queries, image_embeds, features
            )
        if weights["itg"] > 0:
            # Logits at places 0..T-2 predict tokens 1..T-1: a fixed shape, padding weighed out, so nothing waits for the device.
            _, text_branch = self.qformer_of(batch.modality)
            logits = text_branch.logits(itg_hidden[:, :-1]).float()  # [B, T - 1, vocabulary]
            mask = batch.text_mask[:, 1:].float()
            terms["itg"] = losses.token_loss(
                logits, batch.text_ids[:, 1:], mask, dist.all_reduce_sum(mask.sum()), dist.world_size(), LABEL_SMOOTHING
            )
        return terms

    def _itm_loss(
        self,
        batch: Batch,
        gathered: _GatheredText,
        forbidden: Tensor,
        sim_t2i: Tensor,
        sim_i2t: Tensor,
        queries: Tensor,
        image_embeds: Tensor,
        features: Tensor,
    ) -> Tensor:
        """Rows: [own image, own text; chosen image, own text; own image, chosen text], each image with its own box's queries."""
        image_index, image_valid = losses.choose_negatives(sim_t2i, forbidden, batch.itm_uniforms[:, 0])  # [B]
        text_index, text_valid = losses.choose_negatives(sim_i2t, forbidden, batch.itm_uniforms[:, 1])
        # Frozen features travel, not projected ones: every rank projects what it chose, so the projection's gradient is right.
        # An all-gather, because an all-to-all of only the chosen rows needs their numbers on the host: one wait per step.
        chosen = _take(features, image_index)
        negative_embeds = self._image_embeds(batch.modality, chosen)
        negative_boxes = None if batch.boxes is None else _take(batch.boxes, image_index)
        negative_queries = self.query_tokens(batch.modality, negative_boxes, len(batch))
        joint = joint_pass(
            *self.qformer_of(batch.modality),
            torch.cat([queries, negative_queries, queries]),  # [3B, Q, D]
            torch.cat([image_embeds, negative_embeds, image_embeds]),  # [3B, P, V]
            torch.cat([batch.text_ids, batch.text_ids, gathered.text_ids[text_index]]),  # [3B, T]
            torch.cat([batch.text_mask, batch.text_mask, gathered.text_mask[text_index]]),
        )  # [3B, Q, D]
        logits = self.heads_of(batch.modality).itm_head(joint).float().mean(dim=1)  # [3B, 2]
        valid = losses.itm_row_weights(image_valid, text_valid)
        return losses.itm_loss(logits, valid, dist.all_reduce_sum(valid.sum()), dist.world_size())

    def _llm_loss(self, batch: Batch, soft_prompt: Tensor) -> Tensor:
        logits = language.caption_logits(self.blip2.language_model, soft_prompt, batch).float()  # [B, T, vocabulary]
        mask = batch.llm_mask.float()
        return losses.token_loss(logits, batch.llm_ids, mask, dist.all_reduce_sum(mask.sum()), dist.world_size(), 0.0)

    # -- prediction ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def query_output(self, modality: str, features: Tensor, boxes: Tensor | None) -> Tensor:
        """Frozen features (``encode``) as the Q-Former sees them, [B, Q, D]; rows of one source may repeat, one for each of its boxes.

        A modality without trained parts is read as BLIP-2 would.
        """
        self.adapters.activate(modality if modality in self.parts else None)
        with self._autocast():
            image_embeds = self._image_embeds(modality, features)
            queries = self.query_tokens(modality, boxes, len(features))
            qformer, _ = self.qformer_of(modality)
            return query_pass(qformer, queries, image_embeds)

    @torch.no_grad()
    def soft_prompt(self, modality: str, inputs: Tensor, boxes: Tensor | None) -> Tensor:
        """Inputs to what the LLM reads in front of its text, [B, Q, L]."""
        return self._project(modality, self.query_output(modality, self.encode(modality, inputs), boxes))

    def _project(self, modality: str, query_output: Tensor) -> Tensor:
        trained = modality in self.parts
        projection = self._parts_of(modality).language_projection if trained else self.blip2.language_projection
        return projection(query_output)

    @torch.no_grad()
    def generate(
        self,
        modality: str,
        inputs: Tensor,
        boxes: Tensor | None,
        prompt_ids: Tensor,
        decode: DecodeConfig,
        end_token_id: int,
        pad_token_id: int,
    ) -> Tensor:
        """Caption token ids [B, <= max_new_tokens] for inputs of one modality.

        Args:
            modality: its adapter and parts are used; one without trained parts is plain BLIP-2.
            inputs: images [B, 3, H, W] or points [B, N, C]; boxes: [B, box_dim] for regional modalities.
            prompt_ids: [1, Tp] from ``TextProcessor.encode_prompt``.
        """
        with self._autocast():
            features = self.encode(modality, inputs)
        return self.generate_from(modality, features, boxes, prompt_ids, decode, end_token_id, pad_token_id)

    @torch.no_grad()
    def generate_from(
        self,
        modality: str,
        features: Tensor,
        boxes: Tensor | None,
        prompt_ids: Tensor,
        decode: DecodeConfig,
        end_token_id: int,
        pad_token_id: int,
    ) -> Tensor:
        """As ``generate``, from frozen features (``encode``), so that many boxes of a source cost one encoder pass."""
        with self._autocast():
            soft_prompt = self._project(modality, self.query_output(modality, features, boxes))
            return language.generate(
                self.blip2.language_model, soft_prompt, prompt_ids, decode, end_token_id, pad_token_id
            )


@dataclass
class _GatheredText:
    """Every rank's texts and keys, gathered in one collective."""

    object_keys: Tensor  # [W]
    caption_keys: Tensor  # [W]
    text_ids: Tensor  # [W, T]
    text_mask: Tensor  # [W, T]

    @classmethod
    def of(cls, batch: Batch) -> _GatheredText:
        keys = torch.stack([batch.object_keys, batch.caption_keys], dim=1)
        everything = dist.all_gather(torch.cat([keys, batch.text_ids, batch.text_mask], dim=1))  # [W, 2 + 2T]
        length = batch.text_ids.shape[1]
        return cls(everything[:, 0], everything[:, 1], everything[:, 2 : 2 + length], everything[:, 2 + length :])


def _take(local: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` [B] of every rank's ``local`` [B, ...]."""
    return dist.all_gather(local)[index]


def _same_rank(own: Tensor) -> Tensor:
    """[B, W] -> which columns are rows of this rank."""
    return own.any(dim=0).expand_as(own)
