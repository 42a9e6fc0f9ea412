"""Decoded samples to a ``Batch``: stacked inputs, tokenised captions, keys of equal objects and captions, draws for ITM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rb.core.batch import Batch, Sample, numbered
from rb.core.seeding import hash_key, uniform
from rb.core.text import TextProcessor


def stack_inputs(samples: Sequence[Sample]) -> tuple[Tensor, Tensor | None]:
    """Inputs [S, ...] of samples, each that several of them share once, and each sample's row [B] in them; none where row by row."""
    rows: list[int] = []
    pieces: list[Tensor] = []
    for sample in samples:
        if not pieces or sample.inputs is not pieces[-1]:
            pieces.append(sample.inputs)
        rows.append(len(pieces) - 1)
    return torch.stack(pieces), None if len(pieces) == len(rows) else torch.tensor(rows)


def collate(samples: Sequence[Sample], text: TextProcessor, seed: int) -> Batch:
    """Training samples of one modality to its batch.

    Keys of objects and sources are of their ids alone, not of the data set: RefCOCO, RefCOCO+ and RefCOCOg share objects, and one object
    must never be another's negative. ITM's draws are a function of (seed, modality, position), so they do not depend on ranks or resumes.
    """
    modality = samples[0].modality
    assert all(sample.modality == modality and sample.position >= 0 for sample in samples)
    captions = [sample.caption for sample in samples]
    boxes = [sample.box for sample in samples if sample.box is not None]
    assert len(boxes) in (0, len(samples))
    text_ids, text_mask = text.encode_qformer(captions)
    llm_ids, llm_mask = text.encode_llm(captions)
    inputs, source_rows = stack_inputs(samples)
    subject_rows, subjects = None, None
    if source_rows is not None:  # a subject is an input and a box in it
        known: dict[tuple[int, str | None], int] = {}
        about = [(row, sample.object_id) for row, sample in zip(source_rows.tolist(), samples, strict=True)]
        subject_rows, subjects = numbered(torch.tensor([known.setdefault(one, len(known)) for one in about]))
    draws = [[uniform("itm", seed, modality, sample.position, d) for d in range(2)] for sample in samples]
    return Batch(
        modality=modality,
        ids=[sample.id for sample in samples],
        inputs=inputs,
        boxes=torch.stack(boxes) if boxes else None,
        text_ids=text_ids,
        text_mask=text_mask,
        llm_ids=llm_ids,
        llm_mask=llm_mask,
        prompt_ids=text.encode_prompt(modality),
        object_keys=torch.tensor([hash_key("object", sample.id) for sample in samples], dtype=torch.int64),
        caption_keys=torch.tensor([hash_key("caption", caption) for caption in captions], dtype=torch.int64),
        itm_uniforms=torch.tensor(draws, dtype=torch.float32),
        captions=captions,
        positions=[sample.position for sample in samples],
        source_rows=source_rows,
        subject_rows=subject_rows,
        subjects=subjects,
        source_keys=torch.tensor([hash_key("source", sample.source_id) for sample in samples], dtype=torch.int64),
        are_features=samples[0].are_features,
    )
