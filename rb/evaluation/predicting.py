"""Captions for every example of a manifest, written once each to a predictions file; on one process or sharded over ranks.

Needs a run folder (trained parameters) or a run file (the base model: BLIP-2 itself, which reads regions as whole images or as crops).
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm

import rb
from rb.core import dist
from rb.core.config import DecodeConfig, RunConfig
from rb.core.modality import IMAGE, modality_spec
from rb.core.text import TextProcessor
from rb.data.formats import find_manifest, manifest_digest
from rb.data.images import ImageTransform
from rb.data.index import ManifestReader
from rb.data.pipeline import PredictDataset, predict_loader
from rb.data.points import PointTransform
from rb.data.predictions import Prediction, write_predictions
from rb.data.samples import SampleDecoder
from rb.model.region_blip import RegionBLIP
from rb.model.weights.build import build_model, image_settings, text_processor

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
    checkpoint: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.crop_boxes and not (
            modality_spec(self.modality).regional and modality_spec(self.modality).source == "image"
        ):
            raise ValueError(f"--crop-boxes needs a modality with image boxes, not {self.modality}")

    @property
    def variant(self) -> str:
        """``base``, ``crops`` or ``checkpoint``: the row of the table that this job fills."""
        return "crops" if self.crop_boxes else "base" if self.checkpoint is None else "checkpoint"


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
    dataset = PredictDataset(
        reader,
        job.modality,
        _decoder(job, model),
        batch_size=job.batch_size,
        rank=dist.rank(),
        world_size=dist.world_size(),
        crop_boxes=job.crop_boxes,
        crop_context=job.crop_context,
        limit=job.limit,
    )
    rows = []
    loader = predict_loader(dataset, job.num_workers, pin_memory=device.type == "cuda")
    for batch in tqdm(
        loader, desc=f"{job.modality} captions", unit="batch", disable=not dist.is_main(), mininterval=1.0
    ):
        ids = model.generate(
            read_as,
            batch.inputs.to(device, non_blocking=True),
            None
            if batch.boxes is None or not modality_spec(read_as).regional
            else batch.boxes.to(device, non_blocking=True),
            text.encode_prompt(read_as).to(device),
            job.decode,
            text.end_token_id,
            text.pad_token_id,
        )
        for sample, caption in zip(batch.samples, text.decode_llm(ids.cpu()), strict=True):
            rows.append(
                Prediction(
                    id=sample.id,
                    source_id=sample.source_id,
                    object_id=sample.object_id,
                    modality=sample.modality,
                    dataset=sample.dataset,
                    split=sample.split,
                    prediction=caption,
                    references=list(sample.references),
                    box=None if sample.raw_box is None else list(sample.raw_box),
                )
            )
    gathered = dist.gather_objects(rows)
    if gathered is None:
        return len(rows)
    # The manifest's order, whatever the number of ranks: rank r holds examples r, r + world size, ...
    ordered = [rank_rows[i] for i in range(max(map(len, gathered))) for rank_rows in gathered if i < len(rank_rows)]
    write_predictions(out, ordered, _meta(job, reader, text))
    return len(ordered)


def _read_as(job: Job, model: RegionBLIP) -> str:
    """The modality whose parts read the inputs: the base model reads images and their regions as BLIP-2 does."""
    if job.checkpoint is None and modality_spec(job.modality).source == "image":
        return IMAGE
    if job.modality not in model.parts and job.modality != IMAGE:
        raise ValueError(f"this run has no {job.modality}: its model.train_modalities are {', '.join(model.parts)}")
    return job.modality


def _decoder(job: Job, model: RegionBLIP) -> SampleDecoder:
    settings = image_settings(job.config.model)
    size = job.decode.image_size or settings["size"]
    channels = model.point_encoder.config.in_channels if model.point_encoder is not None else 3
    return SampleDecoder(
        images=ImageTransform(size, settings["mean"], settings["std"]),
        points=PointTransform(job.config.model.num_points, channels),
        augment=False,
        seed=job.config.seed,
    )


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
