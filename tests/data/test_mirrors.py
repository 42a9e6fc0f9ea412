"""Mirrored samples: pixels, points, boxes and captions move together, by the rule that a run file gives."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rb.core.boxes import mirror_xyxy
from rb.core.config import DataConfig, ModelConfig
from rb.core.modality import IMAGE, IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION
from rb.data.index import Loaded, ManifestReader
from rb.data.mirrors import draw_mirror
from rb.data.samples import SampleTransform
from rb.sources.images import ImageTransform
from rb.sources.pixels import decode_image
from rb.sources.points import PointTransform, cloud_frame, decode_points
from rb.sources.source import EncoderSettings
from rb.sources.table import SOURCES
from rb.toy.world.room_truth import singles_out, turned
from rb.toy.world.rooms import descriptions, make_room, room_truth
from rb.toy.world.scenes import make_scene, region_expressions
from rb.toy.world.truth import scene_truth
from rb.toy.world.truth import singles_out as true_of_image
from tests.support.small_data import HEIGHT, NUM_POINTS, WIDTH, write_set

DRAWS = [("key", i) for i in range(300)]


def shares(rule: str, caption: str, axes: tuple[str, ...] = ("x", "y")) -> tuple[dict[str, float], set[str]]:
    """How often each axis is mirrored along, and the captions that come out."""
    drawn = [draw_mirror(rule, (caption,), axes, key) for key in DRAWS]
    share = {axis: float(np.mean([axis in one.axes for one in drawn])) for axis in axes}
    return share, {one.captions[0] for one in drawn if one.axes}


@pytest.mark.parametrize(
    ("rule", "caption", "mirrored_along", "captions"),
    [
        ("never", "a chair", "", set()),
        ("safe", "a bright chair", "xy", {"a bright chair"}),
        ("safe", "a chair in front of the desk", "x", {"a chair in front of the desk"}),
        ("safe", "the chair on the left", "", set()),
        ("safe", "the chair at 3 o'clock", "", set()),
        ("swap", "a bright chair", "xy", {"a bright chair"}),
        ("swap", "the chair on the left", "x", {"the chair on the right"}),
        ("swap", "the chair right behind the desk", "", set()),
        ("always", "the chair on the left", "xy", {"the chair on the left"}),
    ],
)
def test_a_rule_allows_the_axes_that_keep_the_caption_true(
    rule: str, caption: str, mirrored_along: str, captions: set[str]
) -> None:
    share, found = shares(rule, caption)
    for axis, value in share.items():
        assert (0.4 < value < 0.6) if axis in mirrored_along else value == 0
    assert found == captions


def test_axes_are_drawn_one_by_one_and_by_key() -> None:
    both = [draw_mirror("always", ("a chair",), ("x", "y"), key).axes for key in DRAWS]
    assert {(), ("x",), ("y",), ("x", "y")} == set(both)
    assert both == [draw_mirror("always", ("a chair",), ("x", "y"), key).axes for key in DRAWS]


def test_all_captions_of_a_source_must_allow_it() -> None:
    for rule, captions in (("safe", ("a dog", "left dog")), ("swap", ("left dog", "the dog is right there"))):
        assert not any(draw_mirror(rule, captions, ("x",), key).axes for key in DRAWS)
    drawn = [draw_mirror("swap", ("a dog", "left dog"), ("x",), key) for key in DRAWS]
    assert {one.captions for one in drawn if one.axes} == {("a dog", "right dog")}
    assert {one.captions for one in drawn if not one.axes} == {("a dog", "left dog")}


def loaded(folder: Path, modality: str, caption: str = "the dog on the left") -> Loaded:
    write_set(folder / modality, modality, 1)
    return dataclasses.replace(ManifestReader(folder / modality).sample(0), caption=caption)


def transform(modality: str, rule: str = "swap", **changes: object) -> SampleTransform:
    settings = EncoderSettings(WIDTH)
    config = ModelConfig(num_points=NUM_POINTS, **changes)  # type: ignore[arg-type]
    of_source = {name: source.transform(config, settings) for name, source in SOURCES.items()}
    return SampleTransform(of_source, mirror={modality: rule})


def test_a_mirrored_image_has_its_box_and_its_caption(tmp_path: Path) -> None:
    row = loaded(tmp_path, IMAGE_REGION)
    picture = decode_image(row.media, "x")
    # Box 2..9.5 x 1..8 of a picture 20 wide: mirrored 10.5..18.
    assert row.item is not None
    assert row.item.box == [2.0, 1.0, 9.5, 8.0]
    found = [transform(IMAGE_REGION).training_sample(row, IMAGE_REGION, position) for position in range(40)]
    for sample in found:
        turned_over = sample.caption == "the dog on the right"
        pixels = np.asarray(picture)[:, ::-1] if turned_over else np.asarray(picture)
        assert torch.equal(sample.inputs, ImageTransform(WIDTH)(Image.fromarray(pixels)))
        x1, x2 = (10.5, 18.0) if turned_over else (2.0, 9.5)
        assert sample.box.tolist() == pytest.approx([x1 / WIDTH, 1 / HEIGHT, x2 / WIDTH, 8 / HEIGHT])
    assert {sample.caption for sample in found} == {"the dog on the left", "the dog on the right"}
    # Pixels of a box are those of the mirrored box, whole pixels are cut off after the mirror, and twice is once.
    assert np.array_equal(np.asarray(picture)[1:8, 2:9][:, ::-1], np.asarray(picture)[:, ::-1][1:8, 11:18])
    assert mirror_xyxy(mirror_xyxy([2.0, 1.0, 9.5, 8.0], 20), 20) == [2.0, 1.0, 9.5, 8.0]
    whole = transform(IMAGE_REGION, box2d="whole_pixels")
    boxes = {
        tuple((s.box * WIDTH).tolist()[::2]) for s in (whole.training_sample(row, IMAGE_REGION, p) for p in range(9))
    }
    assert boxes == {(2.0, 9.0), (10.0, 18.0)}


def test_whole_images_are_mirrored_too_and_only_where_asked(tmp_path: Path) -> None:
    row = loaded(tmp_path, IMAGE)
    asked, other = transform(IMAGE), transform(IMAGE_REGION)
    assert {asked.training_sample(row, IMAGE, p).caption for p in range(20)} == {
        "the dog on the left",
        "the dog on the right",
    }
    for still in (other, dataclasses.replace(asked, augment=False)):
        assert {still.training_sample(row, IMAGE, p).caption for p in range(20)} == {"the dog on the left"}
    first = asked.prediction_sample(row, IMAGE).inputs
    assert torch.equal(first, other.prediction_sample(row, IMAGE).inputs)


@pytest.mark.parametrize("frame", ["unit", "metres"])
def test_a_mirrored_scene_has_its_box_and_no_other_point(frame: str) -> None:
    """Points and box of a scene: the mirror of the cloud's own frame (``unit``), or about the stored origin (``metres``)."""
    rng = np.random.default_rng(0)
    points = rng.uniform([0, 0, 0], [6, 5, 2.5], (60, 3)).astype(np.float32)
    box = [1.0, 2.0, 0.5, 3.0, 2.6, 1.5]
    read = PointTransform(60, frame=frame)
    for mirror, signs in (("x", [-1, 1, 1]), ("y", [1, -1, 1]), ("xy", [-1, -1, 1])):
        inputs, [numbers] = read(points, [box], "x", (), None, tuple(mirror))
        still, [still_numbers] = read(points, [box], "x", ())
        assert torch.allclose(inputs, still * torch.tensor(signs), atol=1e-6)
        assert numbers is not None
        assert still_numbers is not None
        low, high = (still_numbers * 2 - 1).view(2, 3) * torch.tensor(signs)
        assert torch.allclose(
            numbers * 2 - 1, torch.cat([torch.minimum(low, high), torch.maximum(low, high)]), atol=1e-6
        )
        # What was in the box is in it, turned too, and nothing else.
        for turn in (None, 3):
            rng = None if turn is None else np.random.default_rng(turn)
            moved, [corners] = PointTransform(60, frame=frame)(points, [box], "x", (), rng, tuple(mirror))
            _, radius = cloud_frame(points, "x")
            unit = moved.double().numpy()
            if frame == "metres":
                unit = (unit - unit.mean(0)) / radius
            low, high = (corners.double().numpy() * 2 - 1).reshape(2, 3)
            inside = ((unit >= low - 1e-6) & (unit <= high + 1e-6)).all(1)
            original = ((points >= box[:3]) & (points <= box[3:])).all(1)
            assert inside[original].all()
            assert turn is not None or (inside == original).all()


def test_objects_are_mirrored_along_their_level_axes_and_keep_what_is_up(tmp_path: Path) -> None:
    row = loaded(tmp_path, POINT_CLOUD, "a red chair")
    assert SOURCES["points"].mirror_axes("y") == ("x", "z")
    assert SOURCES["points"].mirror_axes("z") == ("x", "y")
    points = decode_points(row.media, "x")
    still = PointTransform(NUM_POINTS)(points, (), "x", ())[0]
    for axis in ("x", "z"):
        inputs = PointTransform(NUM_POINTS)(points, (), "x", (), None, (axis,))[0]
        assert torch.equal(inputs[:, 1], still[:, 1])
        assert torch.equal(inputs[:, "xyz".index(axis)], -still[:, "xyz".index(axis)])


def test_the_rules_choose_the_draws_and_leave_all_other_draws(tmp_path: Path) -> None:
    """A scene that is not mirrored is the very sample of a run without mirrors; a mirrored one is its mirror, turned as far."""
    row = loaded(tmp_path, POINT_CLOUD_REGION, "the chair")
    plain, mirrored = SampleTransform(transform(POINT_CLOUD_REGION).of_source), transform(POINT_CLOUD_REGION, "always")
    same = []
    for position in range(30):
        one, two = (t.training_sample(row, POINT_CLOUD_REGION, position) for t in (plain, mirrored))
        same.append(torch.equal(one.inputs, two.inputs))
        assert torch.equal(one.inputs[:, 2], two.inputs[:, 2])
    assert 1 <= sum(same) <= 15  # a quarter


def test_swapped_descriptions_are_true_of_mirrored_rooms_and_kept_ones_are_not() -> None:
    """Toy rooms have a checker: left is towards smaller x, front towards smaller y."""
    mirrors = {"x": np.diag([-1.0, 1.0, 1.0]), "y": np.diag([1.0, -1.0, 1.0])}
    counts = dict.fromkeys(("safe", "swap", "always"), 0)
    false = dict.fromkeys(counts, 0)
    for index in range(30):
        room = make_room(5, "test", index)
        truth = room_truth(room)
        for item in room.objects:
            for k, text in enumerate(descriptions(room, item)):
                for rule in counts:
                    drawn = draw_mirror(rule, (text,), ("x", "y"), (index, item.object_id, k))
                    if not drawn.axes:
                        continue
                    seen = truth
                    for axis in drawn.axes:
                        seen = turned(seen, mirrors[axis], np.zeros(3))
                    counts[rule] += 1
                    false[rule] += not singles_out(drawn.captions[0], seen, item.object_id)
    assert false["safe"] == false["swap"] == 0
    assert counts["swap"] > 1.5 * counts["safe"] > 50
    assert false["always"] > 0.3 * counts["always"]  # the released code's scenes


def test_swapped_expressions_are_true_of_mirrored_images() -> None:
    """Toy images: "left small red cube" and the like; a rule that keeps words makes a third of those with a side false."""
    counts, kept_true, sides = 0, 0, 0
    for index in range(25):
        scene = make_scene(3, "test", index)
        truth = scene_truth(scene)
        objects = [{**o, "box": mirror_xyxy(o["box"], scene.width)} for o in truth["objects"]]
        seen = {**truth, "objects": objects}
        for item in scene.objects:
            for text in region_expressions(scene, item):
                drawn = [draw_mirror("swap", (text,), ("x",), (index, text, k)) for k in range(9)]
                (said,) = {one.captions[0] for one in drawn if one.axes}
                assert true_of_image(text, truth, item.object_id)
                assert true_of_image(said, seen, item.object_id), (text, said)
                counts += 1
                if said != text:
                    sides += 1
                    kept_true += true_of_image(text, seen, item.object_id)
    assert counts > 200
    assert sides > 50
    assert kept_true < 0.1 * sides


def test_a_rule_or_modality_that_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"data\.mirror\.image: 'sometimes' is not one of never, safe, swap, always"):
        DataConfig(mirror={"image": "sometimes"})
    with pytest.raises(ValueError, match="unknown modality 'sound'"):
        DataConfig(mirror={"sound": "safe"})
