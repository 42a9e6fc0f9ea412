"""Order, decoding, collation and loaders: each sample once an epoch, the same batches on any ranks and workers, resumable anywhere."""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rb.core.batch import Batch
from rb.core.config import DataSource, FoundationConfig
from rb.core.modality import IMAGE, IMAGE_REGION, MODALITIES, POINT_CLOUD, POINT_CLOUD_REGION
from rb.core.step_layout import StepLayout
from rb.core.text import TextProcessor
from rb.data.collate import collate
from rb.data.index import ManifestReader, ShardCorruptionError
from rb.data.pipeline import InputView, PredictDataset, TrainDataset, open_training_data, predict_loader, train_loader
from rb.data.samples import SampleTransform
from rb.model.weights.build import text_processor
from rb.sources.images import ImageTransform
from rb.sources.pixels import decode_image
from rb.sources.points import PointTransform
from rb.training.schedule import Schedule
from tests.support import tiny
from tests.support.small_data import HEIGHT, WIDTH, image_bytes, record, write_set

SIDE, NUM_POINTS = 8, 24
GLOBAL_BATCH = 12
LAYOUTS = {1: (4, 3), 2: (3, 2), 3: (4, 1), 4: (3, 1)}  # world size -> micro-batch, accumulation
RECORDS = {IMAGE: 9, IMAGE_REGION: 7, POINT_CLOUD: 6, POINT_CLOUD_REGION: 5}
REPEATS = {IMAGE: 1, IMAGE_REGION: 2, POINT_CLOUD: 1, POINT_CLOUD_REGION: 1}


@pytest.fixture(scope="module")
def text(foundation: FoundationConfig) -> TextProcessor:
    return text_processor(tiny.model_config(foundation))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[DataSource]]:
    """Every modality from two manifests; the second of them is repeated for one modality."""
    folder = tmp_path_factory.mktemp("sets")
    listed = {}
    for modality in MODALITIES:
        write_set(folder / modality / "a", modality, RECORDS[modality])
        write_set(folder / modality / "b", modality, 2, first=100)
        listed[modality] = [
            DataSource(str(folder / modality / "a")),
            DataSource(str(folder / modality / "b/manifest.json"), REPEATS[modality]),
        ]
    return listed


def dataset(
    sources, text: TextProcessor, rank: int = 0, world: int = 1, seed: int = 5, epochs: int = 1
) -> TrainDataset:
    data = open_training_data(sources, seed)
    schedule = Schedule("weighted_round_robin", {m: len(d.stream) for m, d in data.items()}, GLOBAL_BATCH)
    micro, accum = LAYOUTS[world]
    decoder = SampleTransform(
        {"image": ImageTransform(SIDE), "points": PointTransform(NUM_POINTS)}, augment=True, seed=seed
    )
    return TrainDataset(
        data,
        schedule.at,
        decoder,
        text,
        total_steps=schedule.total_steps(epochs),
        layout=StepLayout(micro * world * accum, micro, micro * world, world),
        rank=rank,
    )


def fingerprint(batch: Batch) -> str:
    """Every bit of a batch."""
    digest = hashlib.sha256(repr((batch.modality, batch.ids, batch.captions, batch.positions)).encode())
    for value in vars(batch).values():
        if isinstance(value, torch.Tensor):
            digest.update(repr((value.dtype, value.shape)).encode() + value.numpy().tobytes())
    return digest.hexdigest()


def rows_of(batch: Batch) -> list[tuple[object, ...]]:
    """Each sample with every bit of its input, whatever batch it came in."""
    boxes = [None] * len(batch) if batch.boxes is None else batch.boxes.tolist()
    inputs = [hashlib.sha256(row.numpy().tobytes()).hexdigest() for row in batch.inputs]
    draws = batch.itm_uniforms.tolist()
    return [
        (batch.modality, batch.positions[i], batch.ids[i], batch.captions[i], inputs[i], str(boxes[i]), str(draws[i]))
        for i in range(len(batch))
    ]


def global_order(sources, text: TextProcessor, world: int, workers: int) -> list[list[tuple[object, ...]]]:
    """The samples of every optimizer step over all ranks, in global order."""
    per_rank = [list(train_loader(dataset(sources, text, rank, world), 0, workers)) for rank in range(world)]
    assert len({len(batches) for batches in per_rank}) == 1, "unequal numbers of micro-batches would hang a training"
    accum = LAYOUTS[world][1]
    steps = []
    for step in range(len(per_rank[0]) // accum):
        passes = [batches[step * accum + micro] for micro in range(accum) for batches in per_rank]
        steps.append([row for batch in passes for row in rows_of(batch)])
    return steps


@pytest.fixture(scope="module")
def reference_order(sources, text: TextProcessor) -> list[list[tuple[object, ...]]]:
    return global_order(sources, text, world=1, workers=0)


def test_one_epoch_shows_every_sample_once(sources, text: TextProcessor, reference_order) -> None:
    shown = {modality: Counter() for modality in MODALITIES}
    opened = open_training_data(sources, 5)
    for step in reference_order:
        assert len({row[0] for row in step}) == 1, "one modality a step"
        positions = [row[1] for row in step]
        assert positions == list(range(positions[0], positions[0] + GLOBAL_BATCH))
        for modality, position, sample, caption, *_ in step:
            if position < len(opened[modality].stream):
                shown[modality][sample, caption] += 1
    for modality in MODALITIES:
        expected: Counter = Counter()
        for source in sources[modality]:
            reader = ManifestReader(Path(source.manifest))
            for i in range(len(reader)):
                expected[reader.sample(i).id, reader.sample(i).caption] += source.repeat
        assert shown[modality] == expected
        assert sum(expected.values()) == len(opened[modality].stream)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_same_global_order_on_any_ranks_and_workers(
    sources, text: TextProcessor, reference_order, world: int, workers: int
) -> None:
    assert global_order(sources, text, world, workers) == reference_order


def test_resume_at_any_step_continues_identically(sources, text: TextProcessor) -> None:
    data = dataset(sources, text, rank=1, world=2, epochs=2)
    whole = [fingerprint(batch) for batch in train_loader(data)]
    accum = data.layout.grad_accum_steps
    assert len(whole) == data.total_steps * accum == len(data)
    for step in range(data.total_steps + 1):
        assert [fingerprint(batch) for batch in train_loader(data, step)] == whole[step * accum :], step
    for step in (1, data.total_steps // 2):
        assert [fingerprint(batch) for batch in train_loader(data, step, num_workers=2)] == whole[step * accum :]


def test_seed_and_epoch_change_the_order(sources, text: TextProcessor) -> None:
    def order(seed: int, epoch: int) -> list[str]:
        item = open_training_data(sources, seed)[IMAGE]
        places = [item.place(epoch * len(item.stream) + i) for i in range(len(item.stream))]
        return [f"{place.manifest}:{place.sample}" for _, place in places]

    assert sorted(order(1, 0)) == sorted(order(1, 1)) == sorted(order(2, 0))
    assert len({tuple(order(1, 0)), tuple(order(1, 1)), tuple(order(2, 0)), tuple(sorted(order(1, 0)))}) == 4


def test_training_needs_manifests_of_its_modality(sources) -> None:
    with pytest.raises(ValueError, match="holds image_region, which cannot serve image"):
        open_training_data({IMAGE: sources[IMAGE_REGION]}, 0)


def test_altered_record_stops_training_in_workers_too(tmp_path: Path, text: TextProcessor) -> None:
    write_set(tmp_path / "set", IMAGE, 4)
    shard = tmp_path / "set/small-000000.tar"
    altered = bytearray(shard.read_bytes())
    altered[700] ^= 1
    shard.write_bytes(altered)
    damaged = dataset({IMAGE: [DataSource(str(tmp_path / "set"))]}, text)
    message = r"small-000000\.tar: record 'image/0\.x' at byte 0: its bytes were altered"
    with pytest.raises(ShardCorruptionError, match=message):
        list(train_loader(damaged))
    with pytest.raises(ShardCorruptionError, match=message) as raised:
        list(train_loader(damaged, num_workers=1))
    assert "\n" not in str(raised.value)


def test_readers_survive_pickling(sources) -> None:
    """Worker processes that do not fork get the reader by pickle."""
    reader = ManifestReader(Path(sources[IMAGE][0].manifest))
    again = pickle.loads(pickle.dumps(reader))
    assert again.sample(3) == reader.sample(3)
    assert len(pickle.dumps(reader)) < 2000


# Workers and signals: real processes, because only they have them.

_SCRIPT = """
    import os, signal, subprocess, sys
    from torch.utils.data import Dataset
    from rb.data.loading import Batches

    class Slow(Dataset):
        def __getitem__(self, item):
            return item, os.getpid()

    def main():
        numbers = iter(Batches(Slow(), range(40), 2, False))
        pids = {next(numbers)[1] for _ in range(2)}
        {action}

    main()
"""


def _run(action: str) -> subprocess.CompletedProcess[str]:
    script = textwrap.dedent(_SCRIPT).replace("{action}", action)
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=environment, check=False
    )


def test_workers_outlive_signals_to_the_group() -> None:
    done = _run(
        "[subprocess.run(['kill', f'-{name}', str(pid)], check=True) for pid in pids for name in ('TERM', 'INT')]; "
        "print([n for n, _ in numbers] == list(range(2, 40)))"
    )
    assert done.stdout.strip() == "True", done.stderr
    assert done.returncode == 0


def test_workers_end_with_the_trainer() -> None:
    """A loader that is still in use when the trainer leaves neither hangs it nor leaves processes behind."""
    done = _run("print(*pids, flush=True); globals().update(keep=numbers)")
    assert done.returncode == 0, done.stderr
    for pid in map(int, done.stdout.split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


# Prediction.


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_each_example_is_predicted_once_with_all_references(sources, world: int, workers: int) -> None:
    decoder = SampleTransform({"image": ImageTransform(SIDE), "points": PointTransform(NUM_POINTS)})
    for modality in MODALITIES:
        reader = ManifestReader(Path(sources[modality][0].manifest))
        seen = {}
        for rank in range(world):
            part = PredictDataset(reader, modality, decoder, batch_size=4, rank=rank, world_size=world)
            batches = list(predict_loader(part, workers))
            assert len(batches) == len(part)
            for batch in batches:
                assert (batch.boxes is not None) == MODALITIES[modality].regional
                for sample in batch.samples:
                    assert sample.id not in seen
                    assert sample.caption == ""
                    seen[sample.id] = sample.references
        expected = {}
        for i in range(RECORDS[modality]):
            rec = record(modality, i)
            if MODALITIES[modality].regional:
                expected.update({f"{rec.source_id}#{o.object_id}": tuple(o.captions) for o in rec.objects})
            else:
                expected[rec.source_id] = tuple(rec.captions)
        assert seen == expected


def test_regions_can_be_predicted_from_crops_or_whole_images(sources) -> None:
    reader = ManifestReader(Path(sources[IMAGE_REGION][0].manifest))
    decoder = SampleTransform({"image": ImageTransform(SIDE)})
    crop = PredictDataset(reader, IMAGE, decoder, batch_size=2, view=InputView(crop=0.0))[0]
    whole = PredictDataset(reader, IMAGE, decoder, batch_size=2, limit=3)
    rec = record(IMAGE_REGION, 0)
    picture = decode_image(image_bytes(0), "x")
    assert torch.equal(crop.inputs[0], ImageTransform(SIDE)(picture.crop((2, 1, 9, 8))))
    assert torch.equal(whole[0].inputs[0], ImageTransform(SIDE)(picture))
    assert crop.boxes is None
    assert crop.samples[0].id == f"{rec.source_id}#o0"
    assert crop.samples[0].raw_box == (2.0, 1.0, 9.5, 8.0)
    assert crop.samples[0].modality == IMAGE
    assert [len(whole[i].samples) for i in range(len(whole))] == [2, 1]
    for modality, kwargs in ((IMAGE_REGION, {}), (IMAGE, {"view": InputView(crop=0.0)})):
        with pytest.raises(ValueError, match=r"cannot serve image_region|has no box"):
            PredictDataset(ManifestReader(Path(sources[IMAGE][0].manifest)), modality, decoder, batch_size=1, **kwargs)[
                0
            ]


def test_an_epoch_of_the_first_samples_only(sources) -> None:
    source = replace(sources[IMAGE_REGION][0], repeat=1, first=5)
    data = open_training_data({IMAGE_REGION: [source]}, seed=3)[IMAGE_REGION]
    assert len(data.stream) == 5
    assert sorted(data.place(position)[1].sample for position in range(5)) == [0, 1, 2, 3, 4]


def test_equal_objects_and_captions_have_equal_keys(sources, text: TextProcessor) -> None:
    reader = ManifestReader(Path(sources[IMAGE_REGION][0].manifest))
    decoder = SampleTransform({"image": ImageTransform(SIDE)})
    samples = [decoder.training_sample(reader.sample(i), IMAGE_REGION, i) for i in range(len(reader))]
    batch = collate([*samples, samples[0]], text, seed=1)
    assert batch.captions[0] == "green ball 0 0 0"
    for i in range(len(batch)):
        for j in range(len(batch)):
            assert (batch.object_keys[i] == batch.object_keys[j]).item() == (batch.ids[i] == batch.ids[j])
            assert (batch.caption_keys[i] == batch.caption_keys[j]).item() == (batch.captions[i] == batch.captions[j])
    assert batch.boxes[0].tolist() == pytest.approx([2 / WIDTH, 1 / HEIGHT, 9.5 / WIDTH, 8 / HEIGHT])
    assert ((batch.itm_uniforms >= 0) & (batch.itm_uniforms < 1)).all()
    assert len(torch.unique(batch.itm_uniforms[:-1])) == 2 * len(samples)
    assert not torch.equal(batch.itm_uniforms, collate([*samples, samples[0]], text, seed=2).itm_uniforms)
