"""One modality on its way through the model: the parts that read it (``ModalityModel``), and a micro-batch that they have read (``Encoded``).

``region_blip.py`` makes both, ``loss_terms.py`` computes every loss from an ``Encoded`` and its ``StepShare``. Shapes: B micro-batch, S its
source pieces, P patches, Q query tokens, T text tokens, D Q-Former width, V vision width, L LLM width, E ITC width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Blip2ForConditionalGeneration, Blip2QFormerModel

from rb.core import dist
from rb.core.batch import Batch
from rb.core.config import ModelConfig
from rb.core.modality import ModalitySpec
from rb.model.blip2_config import vision_config_of
from rb.model.parts import ModalityParts, SharedHeads
from rb.model.point_encoder import PointBert
from rb.model.pool import CachedPart, Negatives, PoolRows
from rb.model.qformer import ImageKeys, TextBranch, TextPass, query_and_text_pass, query_pass
from rb.sources.images import normalised
from rb.sources.source import Source


@dataclass(frozen=True)
class ModalityModel:
    """The parts of the model that one modality uses, looked up once. Its adapter is switched elsewhere (``RegionBLIP``).

    Attributes:
        spec: the modality's row; source: the row of its source.
        config: of the whole model.
        blip2: the frozen foundation.
        pixel_table: the numbers of an image's bytes, [3, 256] (``rb/sources/images.py``).
        qformer, text_branch: the Q-Former that reads this modality, and its text branch.
        point_encoder, point_projection: none where the model reads no points.
        own: the modality's trained parts; none for plain BLIP-2.
        shared_heads: the heads of all modalities; none where each has its own.
    """

    spec: ModalitySpec
    source: Source[Any]
    config: ModelConfig
    blip2: Blip2ForConditionalGeneration
    pixel_table: Tensor
    qformer: Blip2QFormerModel
    text_branch: TextBranch
    point_encoder: PointBert | None
    point_projection: nn.Linear | None
    own: ModalityParts | None
    shared_heads: SharedHeads | None

    @property
    def parts(self) -> ModalityParts:
        """The trained parts of a modality that trains."""
        assert self.own is not None, f"{self.spec.name} has no trained parts"
        return self.own

    @property
    def heads(self) -> ModalityParts | SharedHeads:
        """Where ``text_proj``, ``itm_head`` and ``temperature`` are."""
        return self.parts if self.shared_heads is None else self.shared_heads

    def features_of(self, batch: Batch) -> Tensor:
        """Frozen features of a batch: as it brings them, or by the encoder."""
        if not batch.are_features:
            return self.encode(batch.inputs)
        return batch.inputs.to(self.blip2.language_model.get_input_embeddings().weight.dtype)  # of all frozen parts

    @torch.no_grad()
    def encode(self, inputs: Tensor) -> Tensor:
        """Frozen features: images to [S, P, V], clouds to [S, 1 + G, point width]. Worth caching or exchanging: nothing here trains."""
        return self.source.encode(self, inputs)

    def encode_images(self, images: Tensor) -> Tensor:
        """BLIP-2's vision encoder: [B, 3, H, W], bytes or normalised numbers, to [B, P, V]; another size than its own by interpolated positions."""
        dtype = self.blip2.vision_model.embeddings.patch_embedding.weight.dtype
        interpolate = images.shape[-1] != vision_config_of(self.blip2.config).image_size
        pixels = normalised(images, self.pixel_table).to(dtype)
        return self.blip2.vision_model(pixels, interpolate_pos_encoding=interpolate).last_hidden_state

    def encode_points(self, points: Tensor) -> Tensor:
        """The point encoder, [B, N, C], or grouped [B, G, 1 + K, C], to [B, 1 + G, point width]."""
        return self.points()(points)

    def points(self) -> PointBert:
        """The point encoder; ``ValueError`` if the model was built without it."""
        if self.point_encoder is None or self.point_projection is None:
            raise ValueError(f"this model has no point encoder, so it cannot read {self.spec.name} inputs")
        return self.point_encoder

    def image_embeds(self, features: Tensor) -> Tensor:
        """Frozen features to what the Q-Former's cross-attention reads, [S, P, V]."""
        if not self.source.point_encoder:
            return features
        assert self.point_projection is not None
        return self.point_projection(features.to(self.point_projection.weight.dtype))

    def query_tokens(self, boxes: Tensor | None, batch_size: int) -> Tensor:
        """Query tokens with the region's position added, [B, Q, D] (paper section 3.1, PaFE).

        Raises:
            ValueError: a regional modality without boxes, or boxes of another shape.
        """
        if self.own is None:
            return self.blip2.query_tokens.expand(batch_size, -1, -1)
        queries = self.own.query_tokens.expand(batch_size, -1, -1)
        if not self.spec.regional:
            return queries
        expected = (batch_size, self.config.box_dim(self.spec.name))
        if boxes is None or boxes.shape != expected:
            shape = None if boxes is None else tuple(boxes.shape)
            raise ValueError(f"{self.spec.name} needs boxes of shape {expected}, got {shape}")
        return queries if self.own.pafe is None else queries + self.own.pafe(boxes)

    def query_output(self, features: Tensor, boxes: Tensor | None, source_rows: Tensor | None = None) -> Tensor:
        """Frozen features [S, ...] as the Q-Former sees them, [B, Q, D]; no text.

        Args:
            source_rows: [B] int64, which of the features each row sees; none: row by row.
        """
        num_rows = len(features) if source_rows is None else len(source_rows)
        return query_pass(self.qformer, self.query_tokens(boxes, num_rows), self.image_embeds(features), source_rows)

    def soft_prompt(self, query_output: Tensor) -> Tensor:
        """Query output [B, Q, D] to what the LLM reads in front of its text, [B, Q, L]."""
        projection = self.blip2.language_projection if self.own is None else self.own.language_projection
        return projection(query_output)


@dataclass(frozen=True)
class StepShare:
    """What the losses of one micro-batch must know of the optimizer step that it is a part of.

    Attributes:
        num_parts: micro-batches of the step, over all ranks; the step's losses are the mean of theirs.
        totals: term -> what it counts (``loss_terms.COUNTS``) over the whole step, 0-dim float32.
        group: the ranks whose micro-batches make a pool of ITC and ITM.
        pool_parts: micro-batches of a pool, over these ranks.
        cached: what an earlier pass over the pool found; none where one pass of the group is the pool.
    """

    num_parts: int
    totals: dict[str, Tensor]
    group: dist.Group
    pool_parts: int
    cached: CachedPart | None = None


@dataclass
class Encoded:
    """A micro-batch that the encoders and the Q-Former have read. What several loss terms need is computed at its first use.

    Attributes:
        batch: what was read.
        model: the parts that read it.
        share: its place in the step.
        features: [S, P, V or point width], frozen.
        image_embeds: [S, P, V].
        queries: [B, Q, D], the position of the box added.
        query_output: [B, Q, D].
        text: the caption's pass; none where no term of the run reads it.
        image_keys: keys and values of the images that each row looks at, of that pass.
    """

    batch: Batch
    model: ModalityModel
    share: StepShare
    features: Tensor
    image_embeds: Tensor
    queries: Tensor
    query_output: Tensor
    text: TextPass | None
    image_keys: ImageKeys = field(default_factory=dict)

    @classmethod
    def of(cls, model: ModalityModel, batch: Batch, share: StepShare, reads_text: bool) -> Encoded:
        """Read a micro-batch: the encoder, unless an earlier pass did, then one pass of the Q-Former, with the caption or without."""
        features = model.features_of(batch) if share.cached is None else share.cached.features
        image_embeds = model.image_embeds(features)
        queries = model.query_tokens(batch.boxes, len(batch))
        if not reads_text:
            output = query_pass(model.qformer, queries, image_embeds, batch.source_rows)
            return cls(batch, model, share, features, image_embeds, queries, output, None)
        keys: ImageKeys = {}
        text = query_and_text_pass(
            model.qformer, model.text_branch, queries, image_embeds, *batch.texts, batch.source_rows, keep_keys=keys
        )
        return cls(batch, model, share, features, image_embeds, queries, text.query_output, text, keys)

    @property
    def text_cls(self) -> Tensor:
        """The caption's [CLS] state, [B, D]."""
        assert self.text is not None, "the term's row must say reads_text"
        return self.text.text_cls

    @property
    def itg_hidden(self) -> Tensor:
        """States of the caption as the Q-Former writes it, [B, T, D]."""
        assert self.text is not None, "the term's row must say reads_text"
        return self.text.itg_hidden

    @cached_property
    def itc_vectors(self) -> tuple[Tensor, Tensor]:
        """Normalised vectors of queries [B, Q, E] and texts [B, E]."""
        with torch.autocast(self.query_output.device.type, enabled=False):
            queries = self.model.parts.vision_proj(self.query_output.float())
            texts = self.model.heads.text_proj(self.text_cls.float())
            both = F.normalize(torch.cat([queries, texts[:, None]], dim=1), dim=-1)  # [B, Q + 1, E]
        queries, texts = both.split((queries.shape[1], 1), dim=1)
        return queries, texts.squeeze(1)

    @cached_property
    def pool(self) -> PoolRows:
        """This micro-batch among those that the other ranks of its group read at the same time: the whole pool."""
        assert self.share.cached is None, "the pool is larger than one pass"
        heads = self.model.heads
        return PoolRows(
            self.model.config, self.share.group, [self.batch], self.features, *self.itc_vectors, heads.temperature
        )

    def draw(self) -> None:
        """Draw the hard negatives of ITM now, so that the host need not wait for them at their first use. Collective."""
        if self.share.cached is None:
            _ = self.pool.drawn

    @cached_property
    def negatives(self) -> Negatives:
        """What ITM shows each row besides its own pair. Collective, unless an earlier pass chose them."""
        if self.share.cached is None:
            return self.pool.negatives()
        assert self.share.cached.negatives is not None
        return self.share.cached.negatives
