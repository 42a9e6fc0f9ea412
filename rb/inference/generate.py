"""Captions for the examples of a `PredictDataset`, on one process or sharded over ranks. No files, no scores.

Used by prediction jobs (`rb/inference/predicting.py`) and by validation while training (`rb/training/validate.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

from rb.core import dist, heartbeat, progress
from rb.core.batch import Sample
from rb.core.modality import modality_spec
from rb.data.pipeline import PredictDataset, predict_loader
from rb.data.predictions import Prediction
from rb.inference.load import Loaded
from rb.model.language import Generation


def caption_batches(
    loaded: Loaded, dataset: PredictDataset, read_as: str, num_workers: int = 0, bar_stays: bool = True, first: int = 0
) -> Iterator[list[Prediction]]:
    """Captions of this rank's examples, batch by batch. No collective; progress is shown on rank 0.

    Args:
        read_as: the modality whose parts read the inputs (the base model reads a region as ``image``).
        bar_stays: whether the finished progress bar stays on the screen.
        first: batches before this one are left out.
    """
    model, text, device = loaded.model, loaded.text, loaded.model.device
    how = Generation.of(text, read_as, loaded.generation, device)
    for batch in progress.bar(
        predict_loader(dataset, num_workers, device.type == "cuda", first),
        desc=f"{dataset.modality} captions",
        unit="batch",
        disable=not dist.is_main(),
        leave=bar_stays,
    ):
        boxes = batch.boxes if modality_spec(read_as).regional else None
        ids = model.generate(
            read_as,
            batch.inputs.to(device, non_blocking=True),
            None if boxes is None else boxes.to(device, non_blocking=True),
            how,
            None if batch.source_rows is None else batch.source_rows.to(device, non_blocking=True),
        )
        captions = text.decode_llm(ids.cpu())
        heartbeat.beat()
        yield [_row(sample, caption) for sample, caption in zip(batch.samples, captions, strict=True)]


def _row(sample: Sample, caption: str) -> Prediction:
    return Prediction(
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
