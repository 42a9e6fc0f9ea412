"""Order, decoding, collation and loaders: each sample once an epoch, the same batches on any ranks and workers, resumable anywhere."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from rb.core.batch import Batch
from rb.core.boxes import cloud_box_corners
from rb.core.config import DataSource, FoundationConfig
from rb.core.modality import IMAGE, IMAGE_REGION, MODALITIES, POINT_CLOUD, POINT_CLOUD_REGION
from rb.core.text import TextProcessor
from rb.data.collate import collate
from rb.data.images import ImageTransform, crop_to_box, decode_image
from rb.data.index import ManifestReader, ShardCorruptionError
from rb.data.order import Stream, permute
from rb.data.pipeline import PredictDataset, TrainDataset, open_training_data, predict_loader, train_loader
from rb.data.points import PointsError, PointTransform, cloud_frame, object_motion, scene_motion
from rb.data.samples import SampleDecoder
from rb.model.weights.build import text_processor
from rb.training.schedule import Schedule
from tests import tiny
from tests.small_data import HEIGHT, WIDTH, cloud, image_bytes, record, write_set

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
    decoder = SampleDecoder(ImageTransform(SIDE), PointTransform(NUM_POINTS), augment=True, seed=seed)
    return TrainDataset(
        data,
        schedule.at,
        decoder,
        text,
        total_steps=schedule.total_steps(epochs),
        micro_batch_size=micro,
        grad_accum_steps=accum,
        rank=rank,
        world_size=world,
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


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_same_global_order_on_any_ranks_and_workers(
    sources, text: TextProcessor, reference_order, world: int, workers: int
) -> None:
    assert global_order(sources, text, world, workers) == reference_order


def test_resume_at_any_step_continues_identically(sources, text: TextProcessor) -> None:
    data = dataset(sources, text, rank=1, world=2, epochs=2)
    whole = [fingerprint(batch) for batch in train_loader(data)]
    accum = data.grad_accum_steps
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


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 100, 1000])
def test_permutations_are_permutations(size: int) -> None:
    for key in range(4):
        assert sorted(permute(i, size, key) for i in range(size)) == list(range(size))


def test_permutation_is_even() -> None:
    """Where element 0 lands, over 2,000 keys: chi-square below the 0.1 % point of 9 degrees of freedom."""
    landed = Counter(permute(0, 10, key) for key in range(2000))
    assert sum((landed[i] - 200) ** 2 / 200 for i in range(10)) < 27.9


def test_streams_far_away_are_cheap() -> None:
    stream = Stream(IMAGE_REGION, [10_800_000], [1], 0)
    places = [stream.locate(3_000_000_000 + i) for i in range(1000)]
    assert {place.epoch for place in places} == {277}
    assert len({place.sample for place in places}) == 1000
    # No neighbour stays a neighbour: the mean step is a third of the range, give or take.
    assert 3.0e6 < np.abs(np.diff([place.sample for place in places])).mean() < 4.2e6


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
    batches = iter(train_loader(damaged, num_workers=1))
    with pytest.raises(ShardCorruptionError, match=message):
        list(batches)
    # Left to the garbage collector, the queue may go before the worker, and torch waits five seconds for it.
    batches._shutdown_workers()


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
    from rb.data import pipeline

    class Slow(Dataset):
        def __getitem__(self, item):
            return item, os.getpid()

    def main():
        numbers = iter(pipeline._loader(Slow(), range(40), 2, False))
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
    decoder = SampleDecoder(ImageTransform(SIDE), PointTransform(NUM_POINTS))
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
    decoder = SampleDecoder(ImageTransform(SIDE))
    crop = PredictDataset(reader, IMAGE, decoder, batch_size=2, crop_boxes=True)[0]
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
    for modality, kwargs in ((IMAGE_REGION, {}), (IMAGE, {"crop_boxes": True})):
        with pytest.raises(ValueError, match=r"cannot serve image_region|has no box"):
            PredictDataset(ManifestReader(Path(sources[IMAGE][0].manifest)), modality, decoder, batch_size=1, **kwargs)[
                0
            ]


# Images and points.


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "LA", "I;16"])
@pytest.mark.parametrize("size", [(31, 17), (8, 8), (5, 90)])
def test_images_equal_transformers_processor(mode: str, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).convert("L" if mode == "I;16" else mode)
    picture = picture.convert("I;16") if mode == "I;16" else picture
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    opened = Image.open(io.BytesIO(buffer.getvalue()))
    for side in (16, 37):
        theirs = BlipImageProcessorPil(size={"height": side, "width": side})(opened, return_tensors="pt")[
            "pixel_values"
        ][0]
        ours = ImageTransform(side)(decode_image(buffer.getvalue(), "x", size))
        assert ours.dtype == theirs.dtype == torch.float32
        assert torch.equal(ours, theirs), (ours - theirs).abs().max()


def test_stored_pixels_are_kept_as_they_are() -> None:
    """An EXIF rotation would move the image away from under its boxes."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 10, 3), dtype=np.uint8))
    exif = picture.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=exif)
    assert np.array_equal(np.asarray(decode_image(buffer.getvalue(), "x")), np.asarray(picture))


@pytest.mark.parametrize(
    ("box", "context", "size"),
    [
        ((2.9, 1.9, 7.2, 6.9), 0.0, (5, 5)),
        ((0.0, 0.0, float(WIDTH), float(HEIGHT)), 0.0, (WIDTH, HEIGHT)),
        ((-1.0, -1.0, WIDTH + 1.0, 3.0), 0.0, (WIDTH, 3)),
        ((4.2, 4.2, 4.8, 4.8), 0.0, (1, 1)),
        ((WIDTH - 0.1, HEIGHT - 0.1, WIDTH, HEIGHT), 0.0, (1, 1)),
        ((4.0, 4.0, 8.0, 8.0), 0.5, (8, 8)),
    ],
)
def test_crops_are_never_empty(box, context: float, size: tuple[int, int]) -> None:
    assert crop_to_box(decode_image(image_bytes(0), "x"), box, context).size == size


def test_clouds_come_in_their_frame_with_their_box() -> None:
    points = cloud(1, 50)
    low, high = points.min(0), points.max(0)
    inputs, box = PointTransform(50)(points, [*low, *high], "x", ("key",))
    assert inputs.dtype == torch.float32
    assert inputs.mean(0).abs().max() < 1e-6
    assert inputs.norm(dim=1).max() == pytest.approx(1.0, abs=1e-6)
    assert torch.allclose(box * 2 - 1, torch.cat([inputs.amin(0), inputs.amax(0)]), atol=1e-6)


def test_prediction_draws_the_same_points_every_time_and_training_does_not() -> None:
    points, transform = cloud(1, 100), PointTransform(30)
    first = transform(points, None, "x", ("predict", "a"))[0]
    assert torch.equal(first, transform(points, None, "x", ("predict", "a"))[0])
    assert not torch.equal(first, transform(points, None, "x", (0, POINT_CLOUD, 7))[0])
    whole = PointTransform(100)(points, None, "x", ("k",))[0]
    assert {tuple(row) for row in first.tolist()} <= {tuple(row) for row in whole.tolist()}
    assert len({tuple(row) for row in first.tolist()}) == 30


def test_too_few_points_or_colours_are_errors() -> None:
    with pytest.raises(PointsError, match="here: 20 points, fewer than num_points 30"):
        PointTransform(30)(cloud(0, 20), None, "here", ())
    filled = PointTransform(30, allow_few_points=True)(cloud(0, 20), None, "here", ())[0]
    assert len({tuple(row) for row in filled.tolist()}) == 20
    with pytest.raises(PointsError, match="reads colours"):
        PointTransform(20, 6)(cloud(0, 20), None, "here", ())
    with pytest.raises(PointsError, match="all points are in one place"):
        PointTransform(20)(np.ones((20, 3), np.float32), None, "here", ())
    coloured = cloud(0, 20, columns=6)
    assert torch.equal(PointTransform(20, 6)(coloured, None, "here", ())[0][:, 3:], torch.from_numpy(coloured[:, 3:]))
    assert PointTransform(20)(coloured, None, "here", ())[0].shape == (20, 3)


def test_augmentation_moves_the_box_with_its_points() -> None:
    """The eight corners as points: after any motion the box is exactly their hull."""
    corners = cloud_box_corners([1.0, 2.0, 3.0, 4.0, 7.0, 5.0]).astype(np.float32)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        inputs, box = PointTransform(8)(corners, [1.0, 2.0, 3.0, 4.0, 7.0, 5.0], "x", (), rng)
        hull = torch.cat([inputs.amin(0), inputs.amax(0)])
        assert torch.allclose(box * 2 - 1, hull, atol=1e-6)
        still = PointTransform(8)(corners, None, "x", ())[0]
        assert torch.equal(inputs[:, 2], still[:, 2]), "scenes turn about z only"
        assert not torch.equal(inputs, still)


def test_augmentation_ranges() -> None:
    scales, tilts, offsets = [], [], []
    for seed in range(300):
        matrix, offset = object_motion(np.random.default_rng(seed))
        scale = np.cbrt(np.linalg.det(matrix))
        assert np.allclose(matrix @ matrix.T, scale**2 * np.eye(3))
        scales.append(scale)
        tilts.append(np.degrees(np.arccos(np.clip(matrix[1, 1] / scale, -1, 1))))
        offsets.append(np.abs(offset).max())
        turn, none = scene_motion(np.random.default_rng(seed))
        assert np.degrees(np.arctan2(turn[1, 0], turn[0, 0])) == pytest.approx(0, abs=5)
        assert np.linalg.det(turn) == pytest.approx(1)
        assert not none.any()
    assert 0.8 <= min(scales) < 0.83
    assert 1.22 < max(scales) <= 1.25
    assert 1 < np.mean(tilts) < 10
    assert max(tilts) < 16
    assert max(offsets) <= 0.1 * 3**0.5


def test_object_augmentation_is_keyed_and_can_be_off(sources) -> None:
    reader = ManifestReader(Path(sources[POINT_CLOUD][0].manifest))
    on = SampleDecoder(points=PointTransform(40), seed=3)
    off = SampleDecoder(points=PointTransform(40), seed=3, augment=False)
    stored = reader.sample(0)
    first = on.training_sample(stored, POINT_CLOUD, 10).inputs
    assert torch.equal(first, on.training_sample(stored, POINT_CLOUD, 10).inputs)
    assert not torch.equal(first, on.training_sample(stored, POINT_CLOUD, 11).inputs)
    plain = off.training_sample(stored, POINT_CLOUD, 10).inputs
    assert torch.equal(plain, off.training_sample(stored, POINT_CLOUD, 11).inputs)
    assert torch.equal(plain, on.prediction_sample(stored, POINT_CLOUD).inputs)
    centre, radius = cloud_frame(cloud(0), "x")
    assert np.allclose(plain.numpy(), (cloud(0) - centre) / radius, atol=1e-6)
    unique = [len(torch.unique(on.training_sample(stored, POINT_CLOUD, p).inputs, dim=0)) for p in range(40)]
    assert min(unique) < 15
    assert max(unique) > 33


def test_equal_objects_and_captions_have_equal_keys(sources, text: TextProcessor) -> None:
    reader = ManifestReader(Path(sources[IMAGE_REGION][0].manifest))
    decoder = SampleDecoder(ImageTransform(SIDE))
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
