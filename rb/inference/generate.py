"""What a model says of the examples of a `PredictDataset`, on one process or sharded over ranks: captions, answers. No files, no scores.

Used by prediction jobs (`rb/inference/predicting.py`), captions also by validation while training (`rb/training/validate.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from rb.core import dist, heartbeat, progress
from rb.core.batch import Sample
from rb.core.modality import modality_spec
from rb.core.tasks import TASKS, VQA
from rb.core.text import clean_question
from rb.data.pipeline import PredictDataset, PredictionBatch, predict_loader
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
    model, text = loaded.model, loaded.text
    how = Generation.of(text, read_as, loaded.generation, model.device)
    for batch in batches_on_device(loaded, dataset, read_as, "captions", num_workers, bar_stays, first):
        ids = model.generate(read_as, batch.inputs, batch.boxes, how, batch.source_rows)
        captions = text.decode_llm(ids.cpu())
        heartbeat.beat()
        yield [row_of(sample, caption) for sample, caption in zip(batch.samples, captions, strict=True)]


def answer_batches(
    loaded: Loaded, dataset: PredictDataset, read_as: str, num_workers: int = 0, first: int = 0
) -> Iterator[list[Prediction]]:
    """Answers to all questions about this rank's examples, as ``caption_batches``: an image is read once, however many they are."""
    model, text, size = loaded.model, loaded.text, dataset.batch_size
    template = TASKS[VQA].prompt
    assert template is not None
    for batch in batches_on_device(loaded, dataset, read_as, "answers", num_workers, first=first):
        with torch.no_grad():
            features = model.frozen_features(read_as, batch.inputs)
        of_images = model.query_output(read_as, features, None)
        rows = list(range(len(batch.samples))) if batch.source_rows is None else batch.source_rows.tolist()
        answers: list[str] = []
        for start in range(0, len(rows), size):
            asked = [template.format(clean_question(s.question or "")) for s in batch.samples[start : start + size]]
            how = Generation.of_prompts(text, asked, loaded.generation, model.device)
            ids = model.write(read_as, of_images[rows[start : start + size]], how)
            answers += text.decode_llm(ids.cpu())
            heartbeat.beat()
        yield [row_of(sample, answer) for sample, answer in zip(batch.samples, answers, strict=True)]


def batches_on_device(
    loaded: Loaded,
    dataset: PredictDataset,
    read_as: str,
    what: str,
    num_workers: int = 0,
    bar_stays: bool = True,
    first: int = 0,
) -> Iterator[PredictionBatch]:
    """This rank's batches where the model is, behind a progress bar; with boxes only where ``read_as`` has some."""
    device = loaded.model.device
    for batch in progress.bar(
        predict_loader(dataset, num_workers, device.type == "cuda", first),
        desc=f"{dataset.modality} {what}",
        unit="batch",
        disable=not dist.is_main(),
        leave=bar_stays,
    ):
        yield batch.to(device, with_boxes=modality_spec(read_as).regional)


def row_of(sample: Sample, prediction: str, **more: Any) -> Prediction:
    """The row of a sample; ``more``: fields that only some tasks have."""
    return Prediction(
        id=sample.id,
        source_id=sample.source_id,
        object_id=sample.object_id,
        modality=sample.modality,
        dataset=sample.dataset,
        split=sample.split,
        prediction=prediction,
        references=list(sample.references),
        box=None if sample.raw_box is None else list(sample.raw_box),
        question=sample.question,
        part=sample.part,
        **more,
    )
