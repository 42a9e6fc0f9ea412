"""The order is a pure function: 4 modalities x world sizes 1-4 x workers 0-3 x groups x blocks, one epoch each, resumed at every step.

All 256 cases are walked without reading media, each worker with a copy that knows nothing; eight of them are read by real ranks and workers.
"""

from __future__ import annotations

import json
import pickle
from collections import Counter
from itertools import product
from pathlib import Path

import pytest

from rb.core.config import FoundationConfig
from rb.core.modality import MODALITIES
from rb.data.pipeline import TrainDataset
from tests.support.order_worker import GLOBAL_BATCH, ORDERS, Case, dataset_of, read_epochs, sources_of
from tests.support.processes import finish, start_function
from tests.support.small_data import write_set

Shown = tuple[int, int, int]  # position, manifest, sample

REAL = [  # every modality and every order twice; all world sizes, all numbers of workers
    Case(modality, *rest)
    for modality, rest in zip(
        [*MODALITIES, *MODALITIES],
        [
            *((2, 2, "groups"), (4, 1, "groups in blocks"), (3, 3, "blocks"), (1, 3, "groups")),
            *((3, 1, "groups in blocks"), (2, 0, "full"), (4, 2, "full"), (2, 1, "blocks")),
        ],
        strict=True,
    )
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sets")
    for modality in MODALITIES:
        write_set(made / modality / "a", modality, 9)
        write_set(made / modality / "b", modality, 3, first=100)
    return made


def walked(ranks: list[TrainDataset], workers: int, stream: bytes, start_step: int) -> list[list[Shown]]:
    """What each step shows, from ``start_step`` on, where every loader process has a stream that nobody asked before.

    The j-th item that a rank asks for comes from its process j mod W, as torch deals them out.
    """
    accum = ranks[0].layout.grad_accum_steps
    streams = [[pickle.loads(stream) for _ in range(max(1, workers))] for _ in ranks]
    steps = []
    for step in range(start_step, ranks[0].total_steps):
        shown: list[Shown] = []
        for item, (rank, copies) in product(range(step * accum, (step + 1) * accum), zip(ranks, streams, strict=True)):
            _, positions = rank.positions(item)
            places = map(copies[(item - start_step * accum) % len(copies)].locate, positions)
            shown += [
                (position, place.manifest, place.sample) for position, place in zip(positions, places, strict=True)
            ]
        steps.append(shown)
    return steps


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("modality", MODALITIES)
def test_one_epoch_in_one_order_on_any_ranks_and_workers_resumed_anywhere(
    folder: Path, modality: str, order: str
) -> None:
    """16 of the 256 cases."""
    found = {}
    for world in (1, 2, 3, 4):
        ranks = [dataset_of(folder, Case(modality, world, 0, order), rank) for rank in range(world)]
        data = ranks[0].data[modality]
        stream = pickle.dumps(data.stream)
        for workers in (0, 1, 2, 3):
            whole = walked(ranks, workers, stream, 0)
            for step in range(1, len(whole) + 1):
                assert walked(ranks, workers, stream, step) == whole[step:], f"resumed after step {step}"
            found[world, workers] = whole
    assert all(whole == found[1, 0] for whole in found.values())
    shown = [one for step in found[1, 0] for one in step]
    assert [position for position, *_ in shown] == list(range(len(found[1, 0]) * GLOBAL_BATCH))
    once = [
        (m, s)
        for m, source in enumerate(sources_of(folder, modality))
        for s in range(data.stream.sizes[m])
        for _ in range(source.repeat)
    ]
    assert Counter((m, s) for position, m, s in shown if position < len(data.stream)) == Counter(once)


@pytest.mark.dist
def test_real_ranks_and_loader_processes_read_it(folder: Path, foundation: FoundationConfig, tmp_path: Path) -> None:
    """Eight of the 256 cases, with media; the last rank of each is also resumed in the middle."""
    files = [tmp_path / f"{rank}.json" for rank in range(4)]
    finish(*(start_function(read_epochs, folder, REAL, rank, foundation, file) for rank, file in enumerate(files)))
    read = [json.loads(file.read_text()) for file in files]
    for case in REAL:
        ranks = [row for rank in read for row in rank if row["case"] == vars(case)]
        assert len(ranks) == case.world
        dataset = dataset_of(folder, case, 0)
        data, accum = dataset.data[case.modality], dataset.layout.grad_accum_steps
        passes = [row for batches in zip(*(rank["whole"] for rank in ranks), strict=True) for row in batches]
        rows = [row for batch in passes for row in zip(*batch, strict=True)]
        positions = [position for _, _, position in rows]
        assert positions == list(range(dataset.total_steps * GLOBAL_BATCH))
        for name, caption, position in rows:
            reader, place = data.place(position)
            assert (name, caption) == (reader.sample(place.sample).id, reader.sample(place.sample).caption)
        assert ranks[-1]["rest"] == [ranks[-1]["whole"][dataset.total_steps // 2 * accum :]]
