"""The nouns that travel from the data to the model and back: ``Sample``, ``Batch``, ``LossTerms``. Nothing here does work.

Shape letters: B micro-batch, S its source pieces, O its subjects, N points, C point columns, T text tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rb.core.metric_names import TOTAL


@dataclass(frozen=True)
class Sample:
    """One row, decoded: (record, object or none, caption) when training, (record, object or none) when predicting.

    Attributes:
        id: the sample's identity in prediction files: ``source_id`` or ``source_id#object_id``.
        inputs: image [3, H, W] uint8, or points float32 in the cloud's frame, [N, C] or grouped [G, 1 + K, C]. Samples of one source piece,
            which is read once, hold the same tensor object.
        box: [4] xyxy in [0, 1] or [6] min xyz, max xyz in the cloud's frame mapped by (v + 1) / 2 (or [24], ``model.box3d``); none for whole
            sources.
        caption: the training text; empty when predicting.
        references: every caption of this source or object.
        raw_box: the record's own absolute box (pixels or the cloud's units).
        position: place in the modality's endless training stream; -1 when predicting.
        are_features: ``inputs`` are what the frozen encoder made of the source, [P, V].
        question: what is asked when predicting; ``references`` are then its answers, and ``object_id`` its number.
        part: the part of its set that it belongs to, where scores of the parts are published too.
    """

    id: str
    source_id: str
    object_id: str | None
    modality: str
    dataset: str
    split: str
    inputs: Tensor
    box: Tensor | None
    caption: str
    references: tuple[str, ...]
    raw_box: tuple[float, ...] | None = None
    position: int = -1
    are_features: bool = False
    question: str | None = None
    part: str | None = None


@dataclass
class Batch:
    """One micro-batch of one modality on one rank.

    Several samples may be of one source piece (an image, a cloud): it stands in ``inputs`` once, and is encoded once. Several may be
    captions of one subject, which is a source piece or a box in it: the LLM reads what stands before their captions once.

    Attributes:
        inputs: images [S, 3, H, W], uint8 (or float32, normalised already), or points [S, N, C] or [S, G, 1 + K, C] float32; one row a
            source piece, in the order of the samples.
        boxes: [B, box_dim], none for whole sources.
        text_ids, text_mask: the caption for the Q-Former, [B, T] int64; every row padded to the same T on all ranks.
        text_width: length of the longest caption in ``text_mask``, which is the width of ``texts``. Computed if it is not given.
        llm_ids, llm_mask: the caption and its end token for the LLM, [B, T'] int64: the supervised tokens only.
        llm_inputs: [M] int64, places in ``llm_ids.flatten()`` of the tokens that the LLM reads: all that count but the last of each row, from which
            nothing is predicted. Computed from ``llm_mask`` if it is not given.
        prompt_ids: context tokens between soft prompt and caption, [1, Tp] int64, the same for every row (T5: the encoder's prefix).
        object_keys, caption_keys: [B] int64; equal keys mean the same object, the same caption (ITC and ITM leave those out).
        itm_uniforms: [B, 2] float32 in [0, 1): the draws that choose hard negatives (image for text, text for image).
        source_rows: [B] int64, the row of ``inputs`` that each sample sees, ascending; none where S is B, row by row.
        subject_rows: [B] int64, the number of each sample's subject; none where O is B.
        subjects: [O] int64, a sample of each subject; none where O is B.
        source_keys: [B] int64; equal keys mean the same source. Only ``model.same_image_negatives: leave_out`` reads them.
        are_features: ``inputs`` are what the frozen encoder made of the sources, [.., P, V] (``rb cache-features``); it does not run again.
    """

    modality: str
    ids: list[str]
    inputs: Tensor
    boxes: Tensor | None
    text_ids: Tensor
    text_mask: Tensor
    llm_ids: Tensor
    llm_mask: Tensor
    prompt_ids: Tensor
    object_keys: Tensor
    caption_keys: Tensor
    itm_uniforms: Tensor
    captions: list[str] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    source_rows: Tensor | None = None
    subject_rows: Tensor | None = None
    subjects: Tensor | None = None
    source_keys: Tensor | None = None
    are_features: bool = False
    text_width: int = 0
    llm_inputs: Tensor = None  # type: ignore[assignment]  # never none once it is made

    def __post_init__(self) -> None:
        # Of masks on a GPU this waits; the data loader makes batches on the CPU.
        if not self.text_width:
            self.text_width = int(self.text_mask.any(0).sum())
        if self.llm_inputs is None:
            followed = functional.pad(self.llm_mask[:, 1:], (0, 1))
            self.llm_inputs = followed.flatten().nonzero()[:, 0]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def texts(self) -> tuple[Tensor, Tensor]:
        """``text_ids`` and ``text_mask`` without the columns that are padding in every row of this rank, [B, T'] both."""
        return self.text_ids[:, : self.text_width], self.text_mask[:, : self.text_width]

    def for_samples(self, of_sources: Tensor) -> Tensor:
        """What has a row for each source piece, [S, ...], with a row for each sample, [B, ...]."""
        return of_sources if self.source_rows is None else of_sources[self.source_rows]

    def rows(self, chosen: slice) -> Batch:
        """Those of some samples only, with the source pieces that they see."""
        own: dict[str, Any] = {name: value[chosen] for name, value in _of_samples(self).items()}
        own |= _MADE_ANEW
        if self.source_rows is None:
            return dataclasses.replace(self, inputs=self.inputs[chosen], **own)
        seen, rows = torch.unique(self.source_rows[chosen], return_inverse=True)
        own["source_rows"] = None if len(seen) == len(rows) else rows
        if self.subject_rows is not None:
            own["subject_rows"], own["subjects"] = numbered(self.subject_rows[chosen])
        return dataclasses.replace(self, inputs=self.inputs[seen], **own)

    @classmethod
    def joined(cls, batches: Sequence[Batch]) -> Batch:
        """Batches of one modality one behind the other; shorter texts are padded with ids that do not count."""
        fields: dict[str, Any] = dict(_MADE_ANEW)
        for name, value in _of_samples(batches[0]).items():
            values = [getattr(batch, name) for batch in batches]
            if name in ("llm_ids", "llm_mask"):
                longest = max(part.shape[1] for part in values)
                values = [functional.pad(part, (0, longest - part.shape[1])) for part in values]
            fields[name] = torch.cat(values) if isinstance(value, Tensor) else [one for part in values for one in part]
        fields["inputs"] = torch.cat([batch.inputs for batch in batches])
        fields["source_rows"] = joined_source_rows(batches)
        subjects = _joined([(batch.subject_rows, len(batch), len(batch)) for batch in batches])
        fields["subject_rows"], fields["subjects"] = (None, None) if subjects is None else numbered(subjects)
        return dataclasses.replace(batches[0], **fields)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """A copy whose tensors live on ``device``."""
        moved: dict[str, Any] = {
            f.name: value.to(device, non_blocking=non_blocking)
            for f in dataclasses.fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **moved)


# Fields that follow from others, of another batch of samples.
_MADE_ANEW: dict[str, Any] = {"text_width": 0, "llm_inputs": None}


def _of_samples(batch: Batch) -> dict[str, Any]:
    """The fields of a batch that have a row for each sample, and stay what they are in a part of it."""
    shared = (
        "modality",
        "prompt_ids",
        "inputs",
        "source_rows",
        "subject_rows",
        "subjects",
        "are_features",
        *_MADE_ANEW,
    )
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch) if f.name not in shared}
    return {name: value for name, value in fields.items() if value is not None}


def joined_source_rows(batches: Sequence[Batch]) -> Tensor | None:
    """For the samples of several batches, the rows that they see of all their ``inputs``, one behind the other; none where row by row."""
    return _joined([(batch.source_rows, len(batch), len(batch.inputs)) for batch in batches])


def _joined(parts: Sequence[tuple[Tensor | None, int, int]]) -> Tensor | None:
    """Numbers of several batches, each moved behind those before: (numbers, none where they count the rows; rows; how many numbers there are)."""
    given = [numbers for numbers, _, _ in parts if numbers is not None]
    if not given:
        return None
    moved, before = [], 0
    for numbers, rows, size in parts:
        moved.append((torch.arange(rows, device=given[0].device) if numbers is None else numbers) + before)
        before += size
    return torch.cat(moved)


def numbered(keys: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Equal keys [B] as equal numbers 0, 1, ..., [B], and the first row of each number, [O]; none for both where no two are equal."""
    seen, rows = torch.unique(keys, return_inverse=True)
    if len(seen) == len(rows):
        return None, None
    places = torch.arange(len(rows), device=rows.device)
    return rows, torch.full_like(seen, len(rows)).scatter_reduce(0, rows, places, "amin")


@dataclass
class LossTerms:
    """What a forward pass returns: named 0-dim losses, unweighted, and their weighted sum. The loop does not know their names.

    Each term is scaled so that its mean over the micro-batches of a step, those of all ranks, is the step's value.
    """

    terms: dict[str, Tensor]
    total: Tensor

    def with_total(self) -> dict[str, Tensor]:
        """All terms and their weighted sum as ``total``: what is logged."""
        return self.terms | {TOTAL: self.total}
