"""RegionBLIP: ``forward(batch) -> LossTerms`` and ``generate``; the one place where the parts meet (paper section 3, Fig. 1, eq. 2).

A frozen BLIP-2 and a frozen Point-BERT; per trained modality its own query tokens, PaFE, LoRA, projections and heads. Shapes: B
micro-batch, S its source pieces, W gathered batch, P patches, Q query tokens, T text tokens, D Q-Former width, V vision width, L LLM width, E ITC width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Blip2ForConditionalGeneration, Blip2QFormerModel

from rb.core import dist
from rb.core.batch import Batch, LossTerms
from rb.core.config import ModelConfig
from rb.core.loss_terms import LOSS_TERMS
from rb.core.modality import modality_spec
from rb.core.step_layout import StepLayout
from rb.model import language, loss_terms
from rb.model.adapters import Adapters, Held
from rb.model.compiling import compile_parts
from rb.model.encoded import Encoded, ModalityModel, StepShare
from rb.model.language import Generation
from rb.model.packing import let_pack
from rb.model.parts import ModalityParts, SharedHeads, Sizes
from rb.model.point_encoder import PointBert
from rb.model.pool import PoolRows, cached_parts
from rb.model.qformer import TextBranch, joint_pass, share_keys, text_pass
from rb.model.recomputing import recompute_layers
from rb.sources.images import Normalisation
from rb.sources.table import source_of


class RegionBLIP(nn.Module):
    """The model. Build it with ``rb.model.weights.build``; the constructor only wires given parts together.

    Args:
        blip2: an intact ``Blip2ForConditionalGeneration`` whose Q-Former has the text feed-forward layers.
        text_branch: the Q-Former's text embeddings and LM head.
        point_encoder: Point-BERT; none where no point modality is used.
        itc_width: width of the ITC space (256).
        seed: keys the adapters' initialisation and the ITM draws.
        normalisation: of images; none: CLIP's, as of every BLIP-2.
    """

    def __init__(
        self,
        blip2: Blip2ForConditionalGeneration,
        text_branch: TextBranch,
        point_encoder: PointBert | None,
        config: ModelConfig,
        itc_width: int,
        seed: int = 0,
        normalisation: Normalisation | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.blip2 = blip2
        self.text_branch = text_branch
        self.point_encoder = point_encoder
        self.normalisation = normalisation or Normalisation()
        self.register_buffer("pixel_table", self.normalisation.table(), persistent=False)
        for frozen in (blip2, text_branch, point_encoder):
            if frozen is not None:
                frozen.requires_grad_(requires_grad=False)
        share_keys(blip2.qformer)
        let_pack(blip2.language_model)
        sizes = Sizes.of(blip2, itc_width)
        trained = [modality_spec(name) for name in config.train_modalities]
        points = [spec for spec in trained if source_of(spec.name).point_encoder]
        assert point_encoder is not None or not points, "the weights loader asks for it first"
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

    def trained_numbers(self, modality: str) -> int:
        """How many numbers a step of a modality trains."""
        users = self.parameter_modalities()
        return sum(p.numel() for name, p in self.trainable_parameters().items() if modality in users[name])

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

    # -- the parts of one modality ------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.blip2.query_tokens.device

    def of(self, modality: str) -> ModalityModel:
        """The parts that read a modality; one that does not train is read as BLIP-2 would."""
        source = source_of(modality)
        separate = self.point_qformer is not None and source.point_encoder
        return ModalityModel(
            spec=modality_spec(modality),
            source=source,
            config=self.config,
            blip2=self.blip2,
            pixel_table=cast("Tensor", self.pixel_table),
            qformer=cast("Blip2QFormerModel", self.point_qformer) if separate else self.blip2.qformer,
            text_branch=cast("TextBranch", self.point_text_branch) if separate else self.text_branch,
            point_encoder=self.point_encoder,
            point_projection=self.point_projection,
            own=cast("ModalityParts", self.parts[modality]) if modality in self.parts else None,
            shared_heads=self.shared_heads,
        )

    @contextmanager
    def _autocast(self, held: Held | None = None) -> Iterator[None]:
        """bf16 where the frozen parts are bf16; what trains, and states of the Q-Former, stay in fp32 and are cast, LoRA once for all its uses."""
        lower = self.blip2.language_model.get_input_embeddings().weight.dtype == torch.bfloat16
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=lower), self.adapters.held(held):
            yield

    def _with_lora(self) -> list[nn.Module]:
        """The models that may carry LoRA: Q-Formers and LLM."""
        parts = (self.blip2.qformer, self.point_qformer, self.blip2.language_model)
        return [part for part in parts if part is not None]

    def recompute_activations(self) -> None:
        """From now on keep less for the backward pass, and compute it again there (``recomputing.py``). Once for a model."""
        for part in self._with_lora():
            recompute_layers(part, lambda: partial(self._autocast, self.adapters.held_now))

    def compile_parts(self, backend: str | Callable[..., Any] = "inductor", encoders_alone: bool = False) -> None:
        """From now on run encoders, Q-Former and LLM as compiled graphs (``compiling.py``). Once for a model.

        Args:
            backend: of ``torch.compile``.
            encoders_alone: of a model whose layers are recomputed, which torch cannot compile.
        """
        llm, trained = self.blip2.language_model, self._with_lora()
        if language.llm_kind(llm) == "encoder_decoder":
            trained.append(llm.get_encoder())  # called by itself
        compile_parts(self.blip2.vision_model, self.point_encoder, [] if encoders_alone else trained, backend)

    # -- training -----------------------------------------------------------------------------------------------------

    def shares(self, batches: Sequence[Batch], layout: StepLayout) -> Iterator[tuple[Batch, StepShare]]:
        """This rank's micro-batches of a step, each with what ``forward`` must know of the others. Collective.

        Where a pool of ITC and ITM is larger than one pass of its ranks, the pool's micro-batches are read here first, without gradient;
        their frozen features are kept until ``forward`` has had them.

        Args:
            batches: all of the step, of one modality, in order.
            layout: of the step; its ranks are all ranks, or a group of them that makes the step alone.
        """
        modality = batches[0].modality
        names = self.config.terms_of(modality)
        whole, group = dist.group(layout.world_size), dist.group(layout.group_size)
        share = StepShare(
            layout.num_parts, loss_terms.totals(batches, names, whole), group, layout.pool_passes * group.size
        )
        if layout.pool_passes == 1 or not any(LOSS_TERMS[name].contrasts for name in names):
            yield from ((batch, share) for batch in batches)
            return
        for first in range(0, len(batches), layout.pool_passes):
            pool = batches[first : first + layout.pool_passes]
            self.adapters.activate(modality)
            with self._autocast():
                parts = cached_parts(self._read_pool(pool, share), names)
            for batch, cached in zip(pool, parts, strict=True):
                yield batch, replace(share, cached=cached)

    def _read_pool(self, batches: Sequence[Batch], share: StepShare) -> PoolRows:
        """The first pass over this rank's part of a pool: frozen features, and the vectors of ITC as leaves of a new graph."""
        with torch.no_grad():
            model, kept = self.of(batches[0].modality), []
            for batch in batches:
                read = Encoded.of(model, batch, share, reads_text=True)
                kept.append((read.features, *read.itc_vectors))
            features, queries, texts = (torch.cat(pieces) for pieces in zip(*kept, strict=True))
            temperature = model.heads.temperature.detach()
        leaves = [tensor.requires_grad_(torch.is_grad_enabled()) for tensor in (queries, texts, temperature)]
        return PoolRows(self.config, share.group, batches, features, *leaves)

    def forward(self, batch: Batch, share: StepShare | None = None) -> LossTerms:
        """All losses of one micro-batch of one modality: those of the table of terms that apply to it and have a weight.

        Every term is scaled so that its mean over the micro-batches of the step is the step's value: a token loss is a sum divided by the
        tokens of the step. Terms of weight 0 are not computed.

        Args:
            batch: what is read.
            share: from ``shares``; without it the step, and its only pool, is the micro-batch that each rank reads now.
        """
        names = self.config.terms_of(batch.modality)
        if share is None:
            ranks = dist.everyone()
            share = StepShare(ranks.size, loss_terms.totals([batch], names, ranks), ranks, ranks.size)
        self.adapters.activate(batch.modality)
        terms: dict[str, Tensor] = {}
        with self._autocast():
            reads_text = any(LOSS_TERMS[name].reads_text for name in names)
            encoded = Encoded.of(self.of(batch.modality), batch, share, reads_text)
            # ITM last: the host waits for its draws, which begin before the work of the LLM.
            for name in sorted(names, key=lambda name: name == "itm"):
                terms[name] = loss_terms.FUNCTIONS[name](encoded)
                if name == "itc" and "itm" in names:
                    encoded.draw()
        terms = {name: terms[name] for name in names}
        weights = self.config.loss_weights
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        return LossTerms(terms, total)

    @torch.no_grad()
    def stages(self, batch: Batch) -> dict[str, Tensor]:
        """What a micro-batch of a modality that trains becomes on its way to the losses, in order, each [B, ...].

        No sample has a part in the row of another, so a number that is not finite tells whose it is.
        """
        self.adapters.activate(batch.modality)
        reads_text = any(LOSS_TERMS[name].reads_text for name in self.config.terms_of(batch.modality))
        with self._autocast():
            encoded = Encoded.of(
                self.of(batch.modality), batch, StepShare(1, {}, dist.group(1), 1), reads_text=reads_text
            )
            found: dict[str, Tensor | None] = {
                "input": batch.for_samples(batch.inputs),
                "box": batch.boxes,
                "features of the frozen encoder": batch.for_samples(encoded.features),
                "projected features": batch.for_samples(encoded.image_embeds),
                "query tokens": encoded.queries,
                "output of the Q-Former": encoded.query_output,
            }
            if reads_text:
                found |= {"text state": encoded.text_cls}
                found |= dict(
                    zip(("ITC vectors of the input", "ITC vector of the caption"), encoded.itc_vectors, strict=True)
                )
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    # -- prediction ---------------------------------------------------------------------------------------------------

    def encode(self, modality: str, inputs: Tensor) -> Tensor:
        """Frozen features of images [S, 3, H, W] or points [S, N, C] or [S, G, 1 + K, C]: [S, P, V], or [S, 1 + G, point width]."""
        return self.of(modality).encode(inputs)

    def frozen_features(self, modality: str, inputs: Tensor) -> Tensor:
        """As ``encode``, in the types of training."""
        with self._autocast():
            return self.encode(modality, inputs)

    @torch.no_grad()
    def query_output(
        self, modality: str, features: Tensor, boxes: Tensor | None, source_rows: Tensor | None = None
    ) -> Tensor:
        """Frozen features (``encode``) [S, ...] as the Q-Former sees them, [B, Q, D]. ``source_rows`` as of ``generate``."""
        self.adapters.activate(modality if modality in self.parts else None)
        with self._autocast():
            return self.of(modality).query_output(features, boxes, source_rows)

    @torch.no_grad()
    def text_state(self, modality: str, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """[CLS] states [B, D] of texts [B, T], without any input."""
        self.adapters.activate(modality)
        of = self.of(modality)
        with self._autocast():
            return text_pass(of.qformer, of.text_branch, text_ids, text_mask)

    @torch.no_grad()
    def match(
        self,
        modality: str,
        features: Tensor,
        boxes: Tensor | None,
        texts: tuple[Tensor, Tensor],
        source_rows: Tensor | None = None,
    ) -> Tensor:
        """ITM's logits that a text fits, minus that it does not, [B] float32, of a modality that trains.

        Args:
            features: [S, ...], of ``encode``; ``boxes``: [B, box_dim] for regional modalities.
            texts: ids and mask, [B, T] both.
            source_rows: as of ``generate``.
        """
        self.adapters.activate(modality)
        of = self.of(modality)
        with self._autocast():
            queries, images = of.query_tokens(boxes, len(texts[0])), of.image_embeds(features)
            joint = joint_pass(of.qformer, of.text_branch, queries, images, *texts, image_rows=source_rows)
            logits = of.heads.itm_head(joint).float().mean(dim=1)  # [B, 2]
            return logits[:, 1] - logits[:, 0]

    @torch.no_grad()
    def soft_prompt(self, modality: str, inputs: Tensor, boxes: Tensor | None) -> Tensor:
        """Inputs to what the LLM reads in front of its text, [B, Q, L]."""
        query_output = self.query_output(modality, self.encode(modality, inputs), boxes)
        return self.of(modality).soft_prompt(query_output)

    @torch.no_grad()
    def generate(
        self, modality: str, inputs: Tensor, boxes: Tensor | None, how: Generation, source_rows: Tensor | None = None
    ) -> Tensor:
        """Caption token ids [B, <= max_new_tokens] for inputs of one modality.

        Args:
            modality: its adapter and parts are used; one without trained parts is plain BLIP-2.
            inputs: images [S, 3, H, W] or points [S, N, C] or [S, G, 1 + K, C].
            boxes: [B, box_dim] for regional modalities.
            how: prompt and search.
            source_rows: [B] int64, the row of ``inputs`` that each caption is of; none: row by row.
        """
        with self._autocast():
            features = self.encode(modality, inputs)
        return self.generate_from(modality, features, boxes, how, source_rows)

    @torch.no_grad()
    def generate_from(
        self, modality: str, features: Tensor, boxes: Tensor | None, how: Generation, source_rows: Tensor | None = None
    ) -> Tensor:
        """As ``generate``, from frozen features (``encode``), so that many boxes of a source cost one encoder pass."""
        return self.write(modality, self.query_output(modality, features, boxes, source_rows), how)

    @torch.no_grad()
    def write(self, modality: str, query_output: Tensor, how: Generation) -> Tensor:
        """As ``generate``, from ``query_output`` [B, Q, D], so that many questions about a source cost one pass of the Q-Former."""
        with self._prompted(modality, query_output, how) as soft_prompt:
            return language.generate(self.blip2.language_model, soft_prompt, how)

    @torch.no_grad()
    def generate_scored(
        self, modality: str, features: Tensor, boxes: Tensor | None, how: Generation, source_rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As ``generate_from``, with the log-probability of each caption, [B] float32 (``language.log_probabilities``)."""
        query_output = self.query_output(modality, features, boxes, source_rows)
        with self._prompted(modality, query_output, how) as soft_prompt:
            ids = language.generate(self.blip2.language_model, soft_prompt, how)
            return ids, language.log_probabilities(self.blip2.language_model, soft_prompt, how, ids)

    @contextmanager
    def _prompted(self, modality: str, query_output: Tensor, how: Generation) -> Iterator[Tensor]:
        """The soft prompt [B, Q, L] of ``query_output`` [B, Q, D], while the LLM has the modality's adapter as ``how`` asks."""
        self.adapters.activate(modality if modality in self.parts else None)
        with self.adapters.merged_in_llm(how.decode.merge_lora), self._autocast():
            yield self.of(modality).soft_prompt(query_output)
