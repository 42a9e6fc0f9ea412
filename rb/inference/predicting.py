"""Captions for every example of a manifest, written once each to a predictions file; on one process or sharded over ranks.

Needs a run folder (trained parameters) or a run file (the base model: BLIP-2 itself, which reads regions as whole images or as crops).
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

import rb
from rb.core import dist
from rb.core.config import DecodeConfig, RunConfig
from rb.core.modality import IMAGE, modality_spec
from rb.core.text import TextProcessor
from rb.data.formats import find_manifest, manifest_digest
from rb.data.index import ManifestReader
from rb.data.pipeline import PredictDataset, View
from rb.data.predictions import write_predictions
from rb.data.shuffled_boxes import shuffle_boxes
from rb.inference.generate import caption_examples, example_transform, in_manifest_order
from rb.model.region_blip import RegionBLIP
from rb.model.weights.build import build_model, text_processor
from rb.sources.table import source_of

# What the released code evaluates with, for every task (it also runs at 364 px).
RELEASED_DECODING = DecodeConfig(num_beams=5, max_new_tokens=30, min_new_tokens=8, length_penalty=1.0, image_size=364)
REFERENCE_POLICY = "all sentences of a source or box"


@dataclass(frozen=True)
class Job:
    """One prediction job.

    Attributes:
        config: of the run whose model is used.
        data: manifest, or its folder.
        modality: how its examples are read.
        crop_boxes: caption the inside of each box instead of the whole image (the paper's BLIP-2 baseline for regions).
        crop_context: widen the crop by this share of the box on every side.
        limit: only the manifest's first examples.
        shuffle_boxes: each region gets another box of its source; a region without another one is left out.
        blind: the model gets a grey image, or a cloud of one point, whatever the example.
        checkpoint: identity of the trained parameters for the meta file; none is the base model.
    """

    config: RunConfig
    data: Path
    modality: str
    decode: DecodeConfig
    batch_size: int = 16
    num_workers: int = 0
    crop_boxes: bool = False
    crop_context: float = 0.0
    limit: int | None = None
    shuffle_boxes: bool = False
    blind: bool = False
    checkpoint: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.crop_boxes and not (modality_spec(self.modality).regional and source_of(self.modality).can_crop):
            raise ValueError(f"--crop-boxes needs a modality with image boxes, not {self.modality}")
        if self.shuffle_boxes and not modality_spec(self.modality).regional:
            raise ValueError(f"--shuffle-boxes needs a modality with boxes, not {self.modality}")
        views = {"--crop-boxes": self.crop_boxes, "--shuffle-boxes": self.shuffle_boxes, "--blind": self.blind}
        if sum(views.values()) > 1:
            asked = " and ".join(name for name, given in views.items() if given)
            raise ValueError(f"{asked}: a predictions file is of one kind; predict each to a file of its own")

    @property
    def variant(self) -> str:
        """``base``, ``crops``, ``shuffled``, ``blind`` or ``checkpoint``: the row of the table that this job fills."""
        for name, given in (("crops", self.crop_boxes), ("shuffled", self.shuffle_boxes), ("blind", self.blind)):
            if given:
                return name
        return "base" if self.checkpoint is None else "checkpoint"


def predict(job: Job, load: Callable[[RegionBLIP], None], out: Path) -> int:
    """Caption every example and write ``out``; rank 0 writes, all ranks must call. Returns the number of rows.

    Args:
        load: puts trained parameters into the built model; does nothing for the base model.

    Raises:
        ValueError: the manifest does not fit the modality, or the model cannot read it.
    """
    reader = ManifestReader(find_manifest(job.data))
    text = text_processor(job.config.model)
    device = dist.device()
    model = build_model(job.config.model, job.config.seed, device).model
    load(model)
    read_as = _read_as(job, model)
    limit: int | Sequence[int] | None = job.limit
    shuffled = shuffle_boxes(reader) if job.shuffle_boxes else None
    if shuffled is not None:
        limit = [n for n in range(_first(job.limit, reader.num_examples)) if n in shuffled.box_of]
    dataset = PredictDataset(
        reader,
        job.modality,
        example_transform(job.config.model, model, job.config.seed, job.decode.image_size),
        batch_size=job.batch_size,
        rank=dist.rank(),
        world_size=dist.world_size(),
        view=View(
            crop=job.crop_context if job.crop_boxes else None,
            box_of=shuffled.box_of if shuffled is not None else {},
            blind=job.blind,
        ),
        limit=limit,
    )
    rows = caption_examples(model, text, dataset, read_as, job.decode, job.num_workers)
    gathered = dist.gather_objects(rows)
    if gathered is None:
        return len(rows)
    ordered = in_manifest_order(gathered)
    meta = _meta(job, reader, text)
    if shuffled is not None:
        meta["left_out"] = {"regions without another box": _first(job.limit, reader.num_examples) - len(ordered)}
    write_predictions(out, ordered, meta)
    return len(ordered)


def _first(limit: int | None, total: int) -> int:
    return total if limit is None else min(limit, total)


def _read_as(job: Job, model: RegionBLIP) -> str:
    """The modality whose parts read the inputs: the base model reads images and their regions as BLIP-2 does."""
    if job.checkpoint is None and source_of(job.modality).blip2_reads:
        return IMAGE
    if job.modality not in model.parts and job.modality != IMAGE:
        raise ValueError(f"this run has no {job.modality}: its model.train_modalities are {', '.join(model.parts)}")
    return job.modality


def _meta(job: Job, reader: ManifestReader, text: TextProcessor) -> dict[str, Any]:
    return {
        "data": str(reader.path.resolve()),
        "dataset": reader.manifest.name,
        "split": reader.manifest.split,
        "modality": job.modality,
        "variant": job.variant,
        "manifest_digest": manifest_digest(reader.path),
        "checkpoint": job.checkpoint,
        "foundation": dataclasses.asdict(job.config.model.foundation),
        "decoding": dataclasses.asdict(job.decode) | {"prompt": text.prompt},
        "reference_policy": REFERENCE_POLICY,
        "crop_context": job.crop_context if job.crop_boxes else None,
        "limit": job.limit,
        "versions": {
            "rb": rb.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }
