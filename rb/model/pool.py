"""The pool: the samples that ITC and ITM contrast with each other, ``train.contrastive_batch_size`` of them on any number of ranks.

Here is what one rank knows of it: its own rows, all columns, and the negatives chosen for its rows. Where one forward pass of the ranks
that share a pool is as large as the pool, rows are one micro-batch and carry gradient. Where it is smaller, rows are all micro-batches of
this rank in the pool, read before without gradient, and ``cached_parts`` keeps what each of them needs in its second pass. Shapes: B
micro-batch, S its source pieces, R rows of this rank, W columns (the pool), P patches, Q query tokens, T text tokens, E width of the
contrastive space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from rb.core import dist
from rb.core.batch import Batch, joined_source_rows
from rb.core.config import ModelConfig
from rb.model import losses


@dataclass(frozen=True)
class Gathered:
    """What every rank knows of the whole pool besides the vectors of ITC, gathered in one collective."""

    keys: Tensor  # [W, respects], see `losses.duplicate_mask`
    text_ids: Tensor  # [W, T]
    text_mask: Tensor  # [W, T]
    boxes: Tensor | None  # [W, box_dim]


@dataclass(frozen=True)
class Drawn:
    """The hard negatives of this rank's rows, as columns of the pool.

    Attributes:
        images, texts: [R].
        image_valid, text_valid: [R], 0 where nothing could be chosen.
        all_images: [ranks of the group, R], the images of all rows of the pool: who needs what of whom.
        text_lengths: [R], tokens of the chosen texts; none where they are all texts of this rank.
        total_rows: 0-dim, rows of the whole pool that count (``losses.itm_row_weights``).
    """

    images: Tensor
    texts: Tensor
    image_valid: Tensor
    text_valid: Tensor
    all_images: dist.OnHost
    text_lengths: dist.OnHost | None
    total_rows: Tensor


@dataclass(frozen=True)
class Negatives:
    """What ITM shows each row besides its own pair: the features and box of a chosen image, and a chosen text.

    Attributes:
        features: [R, P, V or point width], frozen. boxes: [R, box_dim], none for whole sources.
        text_ids, text_mask: [R, T'], as wide as the longest of these texts and of the rows' own ones, or a little wider.
        image_valid, text_valid: [R], 0 where nothing could be chosen.
        total_rows: 0-dim, rows of the whole pool that count (``losses.itm_row_weights``).
    """

    features: Tensor
    boxes: Tensor | None
    text_ids: Tensor
    text_mask: Tensor
    image_valid: Tensor
    text_valid: Tensor
    total_rows: Tensor

    def rows(self, chosen: slice) -> Negatives:
        """Those of some rows only."""
        boxes = None if self.boxes is None else self.boxes[chosen]
        texts = self.text_ids[chosen], self.text_mask[chosen]
        return Negatives(
            self.features[chosen], boxes, *texts, self.image_valid[chosen], self.text_valid[chosen], self.total_rows
        )


@dataclass
class PoolRows:
    """This rank's rows of a pool against all of its columns.

    Attributes:
        config: of the model.
        group: the ranks that make the pool.
        batches: of this rank, in order; R is the sum of their rows.
        features: frozen, [.., P, V or point width]: the source pieces of the batches, one batch behind the other.
        queries: [R, Q, E] and texts: [R, E], normalised vectors of ITC.
        temperature: [1].
    """

    config: ModelConfig
    group: dist.Group
    batches: Sequence[Batch]
    features: Tensor
    queries: Tensor
    texts: Tensor
    temperature: Tensor

    def _of_rows(self, name: str) -> Tensor:
        """A tensor of the batches, all rows: [R, ...]."""
        pieces: list[Tensor] = [getattr(batch, name) for batch in self.batches]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    @property
    def row_offset(self) -> int:
        """Column of this rank's first row."""
        return self.group.rank * len(self.texts)

    @cached_property
    def keys(self) -> Tensor:
        """[R, respects]: in which respects a sample may be the same as another, so that neither is the other's negative."""
        names = ["object_keys", "caption_keys"] if self.config.itc_mask_duplicates else []
        if self.config.same_image_negatives == "leave_out":
            names.append("source_keys")
        own = [self._of_rows(name) for name in names]
        return torch.stack(own, dim=1) if own else self._of_rows("object_keys").new_empty(len(self.texts), 0)

    @cached_property
    def gathered(self) -> Gathered:
        """Keys, texts and boxes of the pool. Collective."""
        pieces = [self.keys, self._of_rows("text_ids"), self._of_rows("text_mask")]
        if self.batches[0].boxes is not None:
            pieces.append(self._of_rows("boxes"))
        keys, text_ids, text_mask, *boxes = dist.all_gather_together(pieces, self.group)
        return Gathered(keys, text_ids, text_mask, boxes[0] if boxes else None)

    @cached_property
    def duplicates(self) -> Tensor | None:
        """[R, W] bool: columns that are the same as the row in one of ``keys``, the row itself not among them. Collective.

        None where the run leaves nothing out.
        """
        if not self.keys.shape[1]:
            return None
        return losses.duplicate_mask(self.keys, self.gathered.keys, self.row_offset)

    @cached_property
    def similarities(self) -> tuple[Tensor, Tensor]:
        """Image to text and text to image, [R, W] each, over the temperature. Collective."""
        with torch.autocast(self.texts.device.type, enabled=False):
            own = torch.cat([self.queries, self.texts[:, None]], dim=1)  # [R, Q + 1, E]
            everything = dist.all_gather_with_grad(own, self.group)
            return losses.similarities(
                self.queries, self.texts, everything[:, :-1], everything[:, -1], self.temperature
            )

    @cached_property
    def drawn(self) -> Drawn:
        """A hard negative image and text for every row, drawn by the similarities (BLIP-2 stage 1). Collective.

        A draw is a function of the row's own uniform number and of the pool in the order of the step, so neither ranks nor micro-batches
        change it.
        """
        sim_i2t, sim_t2i = self.similarities
        forbidden = losses.own_column(sim_i2t, self.row_offset)  # [R, W]
        if self.duplicates is not None:
            forbidden = forbidden | self.duplicates
        if self.config.itm_negatives == "local":
            forbidden = forbidden | self._other_micro_batches(sim_i2t)
        uniforms = self._of_rows("itm_uniforms")
        images, image_valid = losses.choose_negatives(sim_t2i.detach(), forbidden, uniforms[:, 0])  # [R]
        texts, text_valid = losses.choose_negatives(sim_i2t.detach(), forbidden, uniforms[:, 1])
        everywhere = dist.all_gather_together([images, image_valid, text_valid], self.group)  # [W] each
        return Drawn(
            images=images,
            texts=texts,
            image_valid=image_valid,
            text_valid=text_valid,
            all_images=dist.OnHost(everywhere[0].view(self.group.size, -1)),
            text_lengths=None if self.group.size == 1 else dist.OnHost(self.gathered.text_mask[texts].sum(1)),
            total_rows=losses.itm_row_weights(*everywhere[1:]).sum(),
        )

    def negatives(self) -> Negatives:
        """What ``drawn`` names. Collective."""
        drawn, gathered = self.drawn, self.gathered
        width = max(batch.text_width for batch in self.batches)
        if drawn.text_lengths is not None:
            width = max(width, int(drawn.text_lengths.get().max()))
        return Negatives(
            features=self._chosen_features(drawn),
            boxes=None if gathered.boxes is None else gathered.boxes[drawn.images],
            text_ids=gathered.text_ids[drawn.texts, :width],
            text_mask=gathered.text_mask[drawn.texts, :width],
            image_valid=drawn.image_valid,
            text_valid=drawn.text_valid,
            total_rows=drawn.total_rows,
        )

    def _chosen_features(self, drawn: Drawn) -> Tensor:
        """Frozen features of the chosen images, [R, P, V or point width]. Collective.

        Frozen features travel, not projected ones: every rank projects what it chose, so the projection's gradient is right. Only chosen ones
        travel, whose numbers the host must know: one wait for the device where there are several ranks, for a copy that began with the draw.
        """
        places = joined_source_rows(self.batches)  # ranks have different numbers of source pieces, of samples the same
        if self.group.size == 1:
            return self.features[drawn.images if places is None else places[drawn.images]]
        return dist.exchange_rows(self.features, drawn.all_images.get(), self.group, places)

    def _other_micro_batches(self, table: Tensor) -> Tensor:
        """Bool like a table [R, W]: columns of another micro-batch than the row's."""
        size = len(self.batches[0])
        rows = torch.arange(self.row_offset, self.row_offset + table.shape[0], device=table.device) // size
        return rows[:, None] != torch.arange(table.shape[1], device=table.device) // size


@dataclass(frozen=True)
class CachedPart:
    """What one micro-batch needs in its second pass, of a pool that was read in a first one.

    Attributes:
        features: [S, P, V or point width], frozen: the encoder does not run again.
        itc: 0-dim, ITC of this micro-batch's rows against the pool; none where the run has no ITC.
        gradients: of ITC, for this micro-batch's queries [B, Q, E], texts [B, E] and for the temperature [1]; none without gradient.
        negatives: of this micro-batch; none where the run has no ITM.
    """

    features: Tensor
    itc: Tensor | None
    gradients: tuple[Tensor, Tensor, Tensor] | None
    negatives: Negatives | None


def cached_parts(rows: PoolRows, names: Sequence[str]) -> list[CachedPart]:
    """What each micro-batch of this rank in the pool needs in its second pass (GradCache, Gao et al. 2021, arXiv 2101.06983). Collective.

    Args:
        rows: of all of them; queries, texts and temperature are leaves.
        names: the terms of the run.
    """
    slices = _slices([len(batch) for batch in rows.batches])
    features = rows.features.split([len(batch.inputs) for batch in rows.batches])
    itc, gradients = _contrast(rows, slices) if "itc" in names else (None, None)
    negatives = rows.negatives() if "itm" in names else None
    return [
        CachedPart(
            features[number],
            None if itc is None else itc[number],
            None if gradients is None else (gradients[0][chosen], gradients[1][chosen], gradients[2]),
            None if negatives is None else negatives.rows(chosen),
        )
        for number, chosen in enumerate(slices)
    ]


def _slices(sizes: Sequence[int]) -> list[slice]:
    return [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]


def _contrast(rows: PoolRows, slices: Sequence[slice]) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    """ITC of each micro-batch's rows, [micro-batches], and the gradients of their mean for queries, texts and temperature; none while nothing trains.

    The losses of the micro-batches are averaged later. A vector is in one micro-batch only, so it takes the gradient of all of them there;
    the temperature is in each.
    """
    (sim_i2t, sim_t2i), exclude = rows.similarities, rows.duplicates
    itc = torch.stack(
        [
            losses.itc_loss(
                sim_i2t[chosen],
                sim_t2i[chosen],
                rows.row_offset + chosen.start,
                None if exclude is None else exclude[chosen],
            )
            for chosen in slices
        ]
    )
    if not itc.requires_grad:
        return itc, None
    queries, texts, temperature = torch.autograd.grad(itc.mean(), (rows.queries, rows.texts, rows.temperature))
    passes = len(rows.batches)
    return itc.detach(), (queries * passes, texts * passes, temperature)
