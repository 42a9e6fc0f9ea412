"""Regions of scenes: toy rooms, ScanRefer's converter, the turning of a scene with its boxes, training and prediction from its shards."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from rb.cli import main as rb
from rb.core.config import DataSource, DecodeConfig, FoundationConfig
from rb.core.modality import POINT_CLOUD_REGION
from rb.data.collate import collate
from rb.data.formats import read_manifest, read_rejected
from rb.data.index import ManifestReader
from rb.data.pipeline import open_training_data
from rb.data.predictions import read_predictions
from rb.data.prepare import scanrefer
from rb.data.samples import SampleTransform
from rb.data.tars import scan_shard
from rb.inference.predicting import Job, predict
from rb.model.weights.build import build_model
from rb.sources.point_augmentation import MAX_SCENE_TURN, scene_motion
from rb.sources.points import PointTransform, decode_points
from rb.toy.pretraining.tokenizers import opt_tokenizer, qformer_tokenizer
from rb.toy.raw.rooms import SCANREFER_KINDS
from rb.toy.world.room_truth import parse_description, singles_out, true_region, turned
from rb.toy.world.rooms import descriptions, make_room, room_truth
from tests.support import tiny
from tests.support.loading import as_loaded
from tests.support.raw_data import convert

ROOMS = [make_room(5, "test", i) for i in range(40)]
SAID = [(room, item, text) for room in ROOMS for item in room.objects for text in descriptions(room, item)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``raw`` and shards of ``train`` and ``test``, by the commands."""
    folder = tmp_path_factory.mktemp("rooms")
    assert rb(["toy", "raw", "--out", f"{folder}/raw", "--scale", "small", "--seed", "2"]) == 0
    for split in ("train", "test"):
        arguments = ["--raw", f"{folder}/raw/scanrefer", "--out", f"{folder}/{split}", "--split", split]
        assert rb(["prepare", "scanrefer", *arguments]) == 0
    return folder


# Toy rooms


def test_a_room_is_a_pure_function_of_its_key() -> None:
    again = make_room(5, "test", 7)
    assert np.array_equal(again.points, ROOMS[7].points)
    assert room_truth(again) == room_truth(ROOMS[7])
    for other in (make_room(6, "test", 7), make_room(5, "train", 7), make_room(5, "test", 8)):
        assert not np.array_equal(other.points, again.points)


def test_boxes_hold_the_points_of_their_solid_and_all_stand_on_the_floor() -> None:
    for room in ROOMS:
        assert {item.size for item in room.objects} == {"small", "big"}
        floor = room.points[room.instances == 0][:, 2].mean()
        for item in room.objects:
            own = room.points[room.instances == int(item.object_id)]
            low, high = np.array(item.box[:3]), np.array(item.box[3:])
            assert len(own) > 60
            assert ((own > low - 0.03) & (own < high + 0.03)).all()
            assert (own.max(0) - own.min(0) > 0.8 * (high - low)).all()
            assert abs(low[2] - floor) < 0.01


def test_what_is_said_singles_out_its_solid_at_every_angle_of_the_augmentation() -> None:
    for k, (room, item, text) in enumerate(SAID):
        rng = np.random.default_rng(k)
        truth = room_truth(room)
        motions = [scene_motion(rng) for _ in range(4)]
        for angle in (-MAX_SCENE_TURN, 0.0, MAX_SCENE_TURN):
            cos, sin = np.cos(angle), np.sin(angle)
            motions.append((np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]), np.zeros(3)))
        for matrix, offset in motions:
            assert singles_out(text, turned(truth, matrix, offset), item.object_id), (room.room_id, text)
    # The check can fail: turned by a quarter, or seen in a mirror, places are no longer true.
    quarter = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    mirror = np.diag([-1.0, 1.0, 1.0])
    for matrix in (quarter, mirror):
        kept = [singles_out(text, turned(room_truth(room), matrix, np.zeros(3)), o.object_id) for room, o, text in SAID]
        assert 0.2 < np.mean(kept) < 0.8


def test_many_need_a_place_or_a_size_and_few_go_without() -> None:
    objects = [(room, item) for room in ROOMS for item in room.objects]
    several = [sum(o.shape == item.shape for o in room.objects) > 1 for room, item in objects]
    twins = [sum((o.shape, o.size) == (item.shape, item.size) for o in room.objects) > 1 for room, item in objects]
    assert np.mean(several) >= 0.5  # a size or a place is needed
    assert np.mean(twins) >= 0.3  # a place is needed
    assert np.mean([not descriptions(room, item) for room, item in objects]) < 0.12


def test_the_truth_check_finds_lies() -> None:
    def solid(k: int, shape: str, size: str, x: float, y: float) -> dict[str, object]:
        half = 0.2 if size == "small" else 0.4
        box = [x - half, y - half, 0.0, x + half, y + half, 2 * half]
        return {"object_id": str(k), "shape": shape, "size": size, "colour": None, "box": box}

    objects = [
        solid(2, "cube", "small", 0.4, 0.4),
        solid(3, "cube", "small", 2.0, 1.5),
        solid(4, "cone", "big", 1.5, 0.5),
    ]
    truth = {"width": None, "height": None, "objects": objects, "room": [[0, 0], [3, 0], [3, 3], [0, 3]]}
    assert singles_out("that is a cone", truth, "4") is False  # no word of the toy world
    assert singles_out("A cone.", truth, "4")
    assert singles_out("this is a cone .", truth, "4")
    # Captions lose their full stops where they are cleaned as BLIP-2's are.
    assert singles_out("this is a small cube it is in the corner", truth, "2")
    assert singles_out("this is a small cube. it is in the corner, left of the big cone", truth, "2")
    assert not singles_out("this is a small cube. it is right of the big cone, in the corner", truth, "2")
    assert singles_out("the small cube is in the corner, left of the cone.", truth, "2")
    assert singles_out("there is a cube in back of the big cone", truth, "3")
    assert not singles_out("a small cube", truth, "2")
    assert true_region("a small cube", truth, "2")
    assert not true_region("a big cube in the corner", truth, "2")
    assert not true_region("a cube right of the cone", truth, "2")
    assert not true_region("a cube left of the ball", truth, "2")  # there is none
    assert not true_region("a cone near the cube", truth, "4")  # of one cube only
    assert not singles_out("a cube in the corner", truth, "3")
    assert singles_out("a cone on the left", truth, "4") is False  # in the middle
    for text in (
        "",
        "cube",
        "a cube in",
        "a cube left of the",
        "a cube in the corner of",
        "a red cube",
        "a cube, a cone",
        "this is a cube. it is",
        "this is a cube. in the corner",
    ):
        assert parse_description(text) is None, text
    with pytest.raises(ValueError, match="no object '9'"):
        singles_out("a cube", truth, "9")


def test_the_foundations_tokenizers_know_every_word() -> None:
    opt, bert = opt_tokenizer(), qformer_tokenizer()
    for _, _, text in SAID:
        assert opt.unk_token_id not in opt(f"{text}.")["input_ids"], text
        assert bert.unk_token_id not in bert(f"{text}.")["input_ids"], text
        assert len(opt(text)["input_ids"]) <= 24


# The converter


def records(folder: Path) -> dict:
    return {item.record.source_id: item for path in sorted(folder.glob("*.tar")) for item in scan_shard(path)}


def test_every_scene_is_stored_once_with_what_was_said_and_only_spoiled_ones_are_rejected(world: Path) -> None:
    rejected = read_rejected(world / "train" / "rejected.jsonl")
    assert {row.reason for row in rejected} == set(SCANREFER_KINDS)
    assert read_manifest(world / "train").rejected == dict(Counter(row.reason for row in rejected))
    rows = json.loads((world / "raw" / "scanrefer" / "ScanRefer_filtered_test.json").read_text())
    truth = json.loads((world / "raw" / "scanrefer" / "truth.json").read_text())
    found = records(world / "test")
    said = Counter((f"scannet/{row['scene_id']}", row["object_id"], row["description"]) for row in rows)
    stored = Counter(
        (key, item.object_id, text)
        for key, one in found.items()
        for item in one.record.objects
        for text in item.captions
    )
    assert said == stored
    for key, one in found.items():
        points = decode_points(one.media, key)
        assert points.shape[1] == 3
        boxes = {item["object_id"]: item["box"] for item in truth[key]["objects"]}
        for item in one.record.objects:
            assert np.allclose(item.box, boxes[item.object_id], atol=1e-6)
            assert all(singles_out(text, truth[key], item.object_id) for text in item.captions)


def write_scene(raw: Path, boxes: list[list[float]], rows: list[dict], columns: int = 9) -> Path:
    (raw / "scannet_data").mkdir(parents=True)
    vertices = np.random.default_rng(0).uniform(0, 3, (600, columns)).astype(np.float32)
    vertices[:, 3:6] *= 85.0
    np.save(raw / "scannet_data" / "scene0000_00_aligned_vert.npy", vertices)
    np.save(raw / "scannet_data" / "scene0000_00_aligned_bbox.npy", np.array(boxes))
    (raw / "ScanRefer_filtered_val.json").write_text(json.dumps(rows))
    return raw


def row(**changes: object) -> dict:
    return {"scene_id": "scene0000_00", "object_id": "3", "ann_id": "0", "description": "a chair.", **changes}


def test_rows_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    rows = [
        row(),
        row(ann_id="1", description="it is brown."),
        row(ann_id="1"),
        row(object_id="34"),
        row(object_id="x"),
        row(scene_id="../scene0000_00"),
        row(scene_id="scene0001_00"),
        row(ann_id="2", description=None),
    ]
    raw = write_scene(tmp_path / "raw", [[1, 2, 1, 1, 0.5, 2, 5, 3]], rows)
    tally = convert(scanrefer, raw, tmp_path / "out", "val", colours=True)
    assert (tally.read, tally.used) == (8, 2)
    assert tally.rejected == Counter(
        duplicate_source=1, unknown_object=1, malformed_row=2, unsafe_name=1, points_missing=1
    )
    (one,) = records(tmp_path / "out").values()
    (item,) = one.record.objects
    assert (item.object_id, item.captions) == ("3", ["a chair.", "it is brown."])
    assert item.box == [0.5, 1.75, 0.0, 1.5, 2.25, 2.0]
    points = decode_points(one.media, "scene")
    assert points.shape == (600, 6)
    assert 0.0 <= points[:, 3:].min() < points[:, 3:].max() <= 1.0


@pytest.mark.parametrize(
    ("boxes", "columns", "reason"),
    [
        ([[1, 2, 1, 1, 0.0, 2, 5, 3]], 9, "box_empty"),
        ([[1, 2, 1, 1, -1.0, 2, 5, 3]], 9, "box_empty"),
        ([[1, np.nan, 1, 1, 1.0, 2, 5, 3]], 9, "box_empty"),
        ([[1, 20, 1, 1, 1.0, 2, 5, 3]], 9, "box_outside_cloud"),
        ([[1, 1, 1, 1, 1.0, 2, 5, 3], [2, 2, 1, 1, 1.0, 2, 5, 3]], 9, "boxes_unreadable"),
        ([[1, 1, 1, 1, 1.0, 2, 5]], 9, "boxes_unreadable"),
        ([[1, 1, 1, 1, 1.0, 2, 5, 3]], 8, "points_unreadable"),
    ],
)
def test_scenes_that_cannot_be_used_are_named(tmp_path: Path, boxes: list, columns: int, reason: str) -> None:
    raw = write_scene(tmp_path / "raw", boxes, [row()], columns)
    with pytest.raises(ValueError, match=reason):
        convert(scanrefer, raw, tmp_path / "out", "val")


def test_a_scene_without_alignment_is_said_to_be_one(tmp_path: Path) -> None:
    raw = write_scene(tmp_path / "raw", [[1, 2, 1, 1, 1.0, 2, 5, 3]], [row()])
    for kind in ("vert", "bbox"):
        path = raw / "scannet_data" / f"scene0000_00_aligned_{kind}.npy"
        path.rename(path.with_name(f"scene0000_00_{kind}.npy"))
    with pytest.raises(ValueError, match="scene_not_aligned"):
        convert(scanrefer, raw, tmp_path / "out", "val")
    with pytest.raises(ValueError, match=r"ScanRefer_filtered_train\.json: not found"):
        convert(scanrefer, raw, tmp_path / "out", "train")


# From shards to captions


def test_a_box_turns_with_its_scene() -> None:
    """The model's box is the hull of the same corners that turn with the points: it still holds the solid, and hardly more."""
    room = ROOMS[3]
    transform = PointTransform(len(room.points))
    plain, _ = transform(room.points, [room.objects[0].box], "room", (0,))
    angles = set()
    for draw in range(6):
        for item in room.objects:
            rng = np.random.default_rng(draw)
            points, [box] = transform(room.points, [item.box], "room", (0,), rng)
            low, high = (box * 2 - 1).split(3)
            own = points[torch.from_numpy(room.instances == int(item.object_id))]
            still = plain[torch.from_numpy(room.instances == int(item.object_id))]
            assert ((own > low - 0.02) & (own < high + 0.02)).all()
            assert torch.allclose((low + high)[2] / 2, (still.amax(0) + still.amin(0))[2] / 2, atol=0.02)
            assert (high - low)[:2].max() < 1.3 * (still.amax(0) - still.amin(0))[:2].max()
        angles.add(round(float(torch.atan2(points[0, 1], points[0, 0]) - torch.atan2(plain[0, 1], plain[0, 0])), 4))
        assert torch.allclose(points.norm(dim=1), plain.norm(dim=1), atol=1e-5)  # a turn about z, nothing else
        assert torch.allclose(points[:, 2], plain[:, 2], atol=1e-6)
    assert len(angles) == 6


def test_regions_of_rooms_are_learned_and_captioned(world: Path, foundation: FoundationConfig, tmp_path: Path) -> None:
    """A few plain torch steps over one batch of the converted shards; then the box changes what is said."""
    config = tiny.model_config(foundation, train_modalities=(POINT_CLOUD_REGION,), num_points=64)
    built = build_model(config, seed=0)
    model, text = built.model, built.text
    data = open_training_data({POINT_CLOUD_REGION: [DataSource(str(world / "train"))]}, seed=0)[POINT_CLOUD_REGION]
    decoder = SampleTransform({"points": PointTransform(64)})
    samples = []
    for position in range(6):
        reader, place = data.place(position)
        samples.append(decoder.training_sample(reader.sample(place.sample), POINT_CLOUD_REGION, position))
    batch = collate(samples, text, seed=0)
    assert batch.boxes is not None
    assert batch.boxes.shape == (6, 6)
    assert ((batch.boxes > 0) & (batch.boxes < 1)).all()
    parameters = list(model.trainable_parameters().values())
    optimizer = torch.optim.AdamW(parameters, lr=5e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        found = model(batch)
        assert set(found.terms) == {"itc", "itm", "itg", "llm", "reg"}
        found.total.backward()
        optimizer.step()
        losses.append({name: float(value.detach()) for name, value in found.terms.items()})
    for name in ("llm", "reg"):
        assert losses[-1][name] < 0.9 * losses[0][name], (name, losses[0], losses[-1])
    # By the way of rb predict: every described object of the held-out scenes once, with its box.
    loaded = as_loaded(built, DecodeConfig(num_beams=2, max_new_tokens=6))
    job = Job(ManifestReader(world / "test"), POINT_CLOUD_REGION)
    assert predict(job, loaded, tmp_path / "said.jsonl") == read_manifest(world / "test").counts["objects"]
    rows, _ = read_predictions(tmp_path / "said.jsonl")
    truth = json.loads((world / "raw" / "scanrefer" / "truth.json").read_text())
    for found_row in rows:
        boxes = {item["object_id"]: item["box"] for item in truth[found_row.source_id]["objects"]}
        assert np.allclose(found_row.box, boxes[found_row.object_id], atol=1e-6)
    own, other = (
        model.soft_prompt(POINT_CLOUD_REGION, batch.inputs, boxes) for boxes in (batch.boxes, batch.boxes.flip(0))
    )
    assert not torch.allclose(own, other, atol=1e-4)
