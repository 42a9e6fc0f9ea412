"""One source, many captions: read, checked, decoded and transformed once, with one draw for all, in training and in prediction."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rb.core.batch import Batch
from rb.core.boxes import inside_box
from rb.core.config import DataSource, FoundationConfig
from rb.core.modality import IMAGE_REGION, MODALITIES, POINT_CLOUD_REGION
from rb.core.point_draws import with_boxes
from rb.core.schedules import Turn
from rb.core.step_layout import StepLayout
from rb.core.text import TextProcessor
from rb.data.formats import ObjectAnnotation, Record
from rb.data.index import ManifestReader
from rb.data.order import Arrangement
from rb.data.pipeline import InputView, PredictDataset, TrainDataset, open_training_data
from rb.data.samples import SampleTransform
from rb.data.shard_writer import ShardWriter
from rb.model.weights.build import text_processor
from rb.sources.images import ImageSource, ImageTransform
from rb.sources.points import PointSource, PointTransform, encode_points
from tests.support import tiny
from tests.support.small_data import HEIGHT, NUM_POINTS, WIDTH, image_bytes, write_set

SETS = dict.fromkeys(MODALITIES, 7)
TRANSFORM = SampleTransform(
    {"image": ImageTransform(8), "points": PointTransform(NUM_POINTS, num_scene_points=NUM_POINTS - 10)}, seed=5
)


@pytest.fixture(scope="module")
def text(foundation: FoundationConfig) -> TextProcessor:
    return text_processor(tiny.model_config(foundation))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of every modality, and one of crowded scenes and images: five objects with one or two captions each."""
    folder = tmp_path_factory.mktemp("sets")
    for modality, number in SETS.items():
        write_set(folder / modality, modality, number)
    with ShardWriter(folder / "crowded", "crowded", POINT_CLOUD_REGION, "train") as writer:
        for i in range(3):
            points = np.random.default_rng(i).uniform(0, 10, (NUM_POINTS, 3)).astype(np.float32)
            points[:5] = [[20.0 + k, 5.0, 5.0] for k in range(5)]  # one point in each object
            objects = [
                ObjectAnnotation(
                    f"o{k}", [19.9 + k, 4.0, 4.0, 20.1 + k, 6.0, 6.0], [f"ball {k}", f"cube {k}"][: 1 + k % 2]
                )
                for k in range(5)
            ]
            writer.write(Record(f"s{i}", "crowded", "train", 0, 0, [], objects), encode_points(points), "points.npy")
    return folder


def batches(
    manifest: Path, modality: str, text: TextProcessor, n: int, micro: int, transform: SampleTransform = TRANSFORM
) -> list[Batch]:
    """One epoch in micro-batches, the last one filled from the next epoch."""
    data = open_training_data({modality: [DataSource(str(manifest))]}, 5, Arrangement(n))
    steps = -(-len(data[modality].stream) // micro)
    turns = [Turn(modality, step, 0) for step in range(steps)]
    layout = StepLayout(micro, micro, micro, 1)
    dataset = TrainDataset(data, turns.__getitem__, transform, text, total_steps=steps, layout=layout, rank=0)
    return [dataset[i] for i in range(len(dataset))]


def samples(made: list[Batch]) -> dict[int, tuple[object, ...]]:
    """What each position shows: bits of its input and box, caption and id."""
    found = {}
    for batch in made:
        inputs = batch.for_samples(batch.inputs)
        for row, position in enumerate(batch.positions):
            box = None if batch.boxes is None else batch.boxes[row].numpy().tobytes()
            found[position] = (inputs[row].numpy().tobytes(), box, batch.captions[row], batch.ids[row])
    return found


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_micro_batch_reads_each_source_once_and_cuts_change_nothing(
    folder: Path, text: TextProcessor, modality: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every draw there is: augmentation, mirrors, thinned clouds."""
    source = ImageSource if MODALITIES[modality].source == "image" else PointSource
    counted = Counter[str]()
    for owner, name in ((ManifestReader, "_read"), (source, "read")):
        original = getattr(owner, name)

        def counting(*args: object, name: str = name, original: object = original, **kwargs: object) -> object:
            counted[name] += 1
            return original(*args, **kwargs)  # type: ignore[operator]

        monkeypatch.setattr(owner, name, counting)
    transform = replace(TRANSFORM, mirror={modality: "swap"})
    whole = batches(folder / modality, modality, text, 4, 16, transform)
    for micro in (1, 3, 5):
        counted.clear()
        cut = batches(folder / modality, modality, text, 4, micro, transform)
        assert set(counted.values()) == {sum(len(batch.inputs) for batch in cut)}
        shown, expected = samples(cut), samples(whole)
        assert {p: shown[p] for p in shown if p in expected} == {p: expected[p] for p in shown if p in expected}
    assert len(whole[0].inputs) < len(whole[0])
    # Consecutive samples of one source see one and the same input, and only they do.
    first = whole[0]
    new = (first.source_keys[1:] != first.source_keys[:-1]).tolist()
    assert (first.source_rows[1:] != first.source_rows[:-1]).tolist() == new
    # A subject is one object of one source, or the whole source.
    assert torch.equal(first.object_keys[first.subjects][first.subject_rows], first.object_keys)
    assert len(first.subjects) == len({*zip(first.source_rows.tolist(), first.object_keys.tolist(), strict=True)})


@pytest.mark.parametrize("modality", MODALITIES)
def test_groups_of_one_are_samples_by_themselves(folder: Path, text: TextProcessor, modality: str) -> None:
    transform = replace(TRANSFORM, mirror={modality: "swap"})
    reader = ManifestReader(folder / modality)
    data = open_training_data({modality: [DataSource(str(folder / modality))]}, 5)
    for batch in batches(folder / modality, modality, text, 1, 4, transform):
        assert batch.source_rows is None
        for row, position in enumerate(batch.positions):
            _, place = data[modality].place(position)
            alone = transform.training_sample(reader.sample(place.sample), modality, position)
            assert torch.equal(batch.inputs[row], alone.inputs)
            assert batch.captions[row] == alone.caption
            assert (batch.boxes is None) == (alone.box is None)
            assert alone.box is None or torch.equal(batch.boxes[row], alone.box)


def test_one_mirror_is_true_for_all_captions_of_a_group(tmp_path: Path) -> None:
    """Drawn for the group: never where one caption forbids it, and all captions change where words are exchanged."""
    captions = [["the red cube", "a red cube"], ["the cube on the left", "a red cube"]]
    with ShardWriter(tmp_path, "mirrors", IMAGE_REGION, "train") as writer:
        for i, texts in enumerate(captions):
            objects = [ObjectAnnotation("o", [1.0, 1.0, 9.0, 9.0], texts)]
            writer.write(Record(f"r{i}", "mirrors", "train", WIDTH, HEIGHT, [], objects), image_bytes(i), "png")
    reader = ManifestReader(tmp_path)
    for rule, number, expected in (("safe", 0, True), ("safe", 1, False), ("swap", 1, True)):
        transform = replace(TRANSFORM, mirror={IMAGE_REGION: rule})
        group = reader.samples([2 * number, 2 * number + 1])
        left = 1.0 / WIDTH
        mirrored = Counter[bool]()
        for start in range(0, 60, 2):
            made = transform.training_samples(group, IMAGE_REGION, start)
            assert len({id(sample.inputs) for sample in made}) == 1
            assert torch.equal(made[0].box, made[1].box)
            turned = bool(abs(float(made[0].box[0]) - left) > 1e-6)
            mirrored[turned] += 1
            if rule == "swap":
                assert ("right" in made[0].caption) == turned
        assert (mirrored[True] > 0) == expected
        assert mirrored[False] > 0


def test_a_thinned_scene_keeps_points_in_every_region_of_its_group(folder: Path, text: TextProcessor) -> None:
    """Of 40 points 30 are kept, and each of five objects holds one: a draw for one region would lose others of them."""
    still = replace(TRANSFORM, augment=False)
    for micro in (2, 16):
        for batch in batches(folder / "crowded", POINT_CLOUD_REGION, text, 8, micro, still):
            clouds = batch.for_samples(batch.inputs)
            assert clouds.shape[1] == NUM_POINTS - 10
            for points, box in zip(clouds.numpy(), batch.boxes.numpy(), strict=True):
                assert inside_box(points, np.round(box * 2 - 1, 6) + np.repeat([-1e-5, 1e-5], 3)).any()


def test_a_draw_may_keep_its_size_with_any_boxes() -> None:
    points = np.random.default_rng(0).uniform(0, 1, (200, 3))
    everything = [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    tight = [[*(p - 1e-9), *(p + 1e-9)] for p in points[:12]]  # each holds one point
    for seed in range(20):
        choice = np.sort(np.random.default_rng(seed).choice(200, 15, replace=False))
        boxes = [everything, *tight]
        kept = with_boxes(choice, points, boxes, (seed,), same_size=True)
        assert len(np.unique(kept)) == 15
        assert all(inside_box(points[kept], box).any() for box in boxes)
        # Two boxes around one point take one place, not two.
        twice = with_boxes(choice, points, [tight[0], tight[0]], (seed,), same_size=True)
        assert len(np.unique(twice)) == 15
        assert len(set(choice.tolist()) - set(twice.tolist())) <= 1
    few = with_boxes(np.arange(100, 105), points, [everything, *tight], (0,), same_size=True)
    assert len(np.unique(few)) == 5  # more boxes than points


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("modality", MODALITIES)
def test_examples_of_a_record_are_read_once_and_stay_together(folder: Path, modality: str, world: int) -> None:
    manifest = folder / ("crowded" if modality == POINT_CLOUD_REGION else modality)
    reader = ManifestReader(manifest)
    parts = [
        PredictDataset(reader, modality, TRANSFORM, batch_size=4, rank=rank, world_size=world) for rank in range(world)
    ]
    assert [number for part in parts for number in part.examples] == list(range(reader.num_examples))
    assert {part.rounds for part in parts} == {max(map(len, parts))}
    records = [set(reader.records_of(part.examples).tolist()) for part in parts]
    assert sum(map(len, records)) == len(set.union(*records)), "no record is on two ranks"
    for part in parts:
        for number in range(len(part)):
            batch = part[number]
            examples = part.examples[4 * number : 4 * number + 4]
            assert len(batch.inputs) == len(set(reader.records_of(examples).tolist()))
            rows = range(len(examples)) if batch.source_rows is None else batch.source_rows.tolist()
            for row, example, sample in zip(rows, examples, batch.samples, strict=True):
                alone = TRANSFORM.prediction_sample(reader.example(example), modality)
                assert sample.id == alone.id
                assert torch.equal(batch.inputs[row], alone.inputs), "among any others an example sees the same"
                assert alone.box is None or torch.equal(sample.box, alone.box)


def test_shares_are_as_even_as_records_allow(folder: Path) -> None:
    reader = ManifestReader(folder / IMAGE_REGION)
    for world in (1, 2, 3, 5, 16):
        for limit in (None, 5, [0, 3, 4, 8]):
            parts = [
                PredictDataset(
                    reader, IMAGE_REGION, TRANSFORM, batch_size=2, rank=r, world_size=world, limit=limit
                ).examples
                for r in range(world)
            ]
            total = reader.num_examples if limit is None else limit if isinstance(limit, int) else len(limit)
            assert sum(map(len, parts)) == total
            assert [n for part in parts for n in part] == (
                sorted(limit) if isinstance(limit, list) else list(range(total))
            )
            assert max(map(len, parts)) <= total / world + 2  # a record has at most two examples


def test_each_crop_is_an_input_and_other_boxes_are_not(folder: Path) -> None:
    reader = ManifestReader(folder / IMAGE_REGION)
    crops = PredictDataset(reader, IMAGE_REGION, TRANSFORM, batch_size=3, view=InputView(crop=0.0))[0]
    assert crops.source_rows is None
    assert len(crops.inputs) == 3
    # Examples 1 and 2 are the two objects of one image, and each is given the other's box.
    own, other = (
        PredictDataset(reader, IMAGE_REGION, TRANSFORM, batch_size=3, view=view)[0]
        for view in (InputView(), InputView(box_of={1: 1, 2: 0}))
    )
    assert own.source_rows.tolist() == other.source_rows.tolist() == [0, 1, 1]
    assert torch.equal(own.boxes[[0, 2, 1]], other.boxes)
    assert torch.equal(own.inputs, other.inputs)
