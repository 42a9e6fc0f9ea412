"""One modality's data set of an order, and a rank that reads whole epochs of several such cases with real loader processes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rb.core.config import DataSource, FoundationConfig
from rb.core.step_layout import StepLayout
from rb.data.order import Arrangement
from rb.data.pipeline import TrainDataset, open_training_data, train_loader
from rb.data.samples import SampleTransform
from rb.model.weights.build import text_processor
from rb.sources.images import ImageTransform
from rb.sources.points import PointTransform
from rb.training.schedule import Schedule
from tests.support import tiny

GLOBAL_BATCH = 12
LAYOUTS = {1: (4, 3), 2: (3, 2), 3: (4, 1), 4: (3, 1)}  # world size -> micro-batch, accumulation
ORDERS = {"full": Arrangement(1), "groups": Arrangement(4), "blocks": Arrangement(1, "blocks", 2, 2)} | {
    "groups in blocks": Arrangement(4, "blocks", 2, 2)
}
SEED = 5


@dataclass(frozen=True)
class Case:
    """Who reads what: ``order`` is a key of ``ORDERS``."""

    modality: str
    world: int
    workers: int
    order: str


def sources_of(folder: Path, modality: str) -> list[DataSource]:
    """Two manifests, the second shown twice."""
    return [DataSource(str(folder / modality / "a")), DataSource(str(folder / modality / "b"), 2)]


def dataset_of(folder: Path, case: Case, rank: int, foundation: FoundationConfig | None = None) -> TrainDataset:
    """A rank's micro-batches of the epoch's steps. Without a foundation they have places, and cannot be read."""
    data = open_training_data({case.modality: sources_of(folder, case.modality)}, SEED, ORDERS[case.order])
    schedule = Schedule("weighted_round_robin", {case.modality: len(data[case.modality].stream)}, GLOBAL_BATCH)
    micro, accum = LAYOUTS[case.world]
    return TrainDataset(
        data,
        schedule.at,
        SampleTransform({"image": ImageTransform(8), "points": PointTransform(24)}, seed=SEED),
        text_processor(tiny.model_config(foundation)) if foundation else None,  # type: ignore[arg-type]
        total_steps=schedule.total_steps(1),
        layout=StepLayout(micro * case.world * accum, micro, micro * case.world, case.world),
        rank=rank,
    )


def read_epochs(folder: Path, cases: list[Case], rank: int, foundation: FoundationConfig, out: Path) -> None:
    """Ids and positions of each micro-batch of this rank, of every case that has this rank; of the last rank from the middle step on, too."""
    found = []
    for case in cases:
        if rank < case.world:
            dataset = dataset_of(folder, case, rank, foundation)
            starts = (0, dataset.total_steps // 2) if rank == case.world - 1 else (0,)
            read = [
                [(batch.ids, batch.captions, batch.positions) for batch in train_loader(dataset, start, case.workers)]
                for start in starts
            ]
            found.append({"case": asdict(case), "whole": read[0], "rest": read[1:]})
    out.write_text(json.dumps(found))
