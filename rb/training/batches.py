"""The micro-batches that a rank trains on: a function of the run file, the layout of a step, the rank and the step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from rb.core.batch import Batch
from rb.core.config import RunConfig
from rb.core.step_layout import StepLayout
from rb.data.pipeline import TrainDataset, TrainingData, train_loader
from rb.data.samples import SampleTransform
from rb.inference.load import example_transform
from rb.model.weights.build import Built
from rb.training.schedule import Schedule


def training_batches(
    config: RunConfig,
    built: Built,
    data: Mapping[str, TrainingData],
    schedule: Schedule,
    layout: StepLayout,
    rank: int,
    steps: range,
) -> Iterator[Batch]:
    """The micro-batches of some steps (from 0) on one rank of a layout, in order, on the model's device."""
    device, transform = built.model.device, training_transform(config, built)
    dataset = TrainDataset(data, schedule.at, transform, built.text, total_steps=steps.stop, layout=layout, rank=rank)
    pinned = device.type == "cuda"
    loader = train_loader(dataset, steps.start, config.data.num_workers, pinned, config.train.loader_timeout_s)
    return (batch.to(device) for batch in loader)


def training_transform(config: RunConfig, built: Built) -> SampleTransform:
    """How stored rows become the run's training samples."""
    settings = config.data
    return replace(
        example_transform(built, config.seed),
        augment=settings.augment,
        raw_captions=settings.raw_captions,
        mirror=settings.mirror,
        dropped_points=settings.dropped_points,
    )
