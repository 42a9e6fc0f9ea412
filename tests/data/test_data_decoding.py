"""Decoding: images equal to transformers' numbers, clouds in their frame, boxes that move with their points."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from rb.core.boxes import cloud_box_corners
from rb.core.modality import POINT_CLOUD
from rb.data.index import ManifestReader
from rb.data.samples import SampleTransform
from rb.sources.images import ImageTransform, Normalisation, crop_to_box, normalised
from rb.sources.pixels import decode_image
from rb.sources.point_augmentation import drop_points, object_motion, scene_motion
from rb.sources.points import PointsError, PointTransform, cloud_frame
from tests.support.small_data import HEIGHT, WIDTH, cloud, image_bytes, write_set


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "LA"])
@pytest.mark.parametrize("size", [(31, 17), (8, 8), (5, 90)])
def test_images_equal_transformers_processor(mode: str, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    opened = Image.open(io.BytesIO(buffer.getvalue()))
    for side in (16, 37):
        theirs = BlipImageProcessorPil(size={"height": side, "width": side})(opened, return_tensors="pt")[
            "pixel_values"
        ][0]
        stored = ImageTransform(side)(decode_image(buffer.getvalue(), "x", size))
        ours = normalised(stored[None], Normalisation().table())[0]
        assert ours.dtype == theirs.dtype == torch.float32
        assert stored.nbytes * 4 == ours.nbytes
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
    inputs, [box] = PointTransform(50)(points, [[*low, *high]], "x", ("key",))
    assert inputs.dtype == torch.float32
    assert inputs.mean(0).abs().max() < 1e-6
    assert inputs.norm(dim=1).max() == pytest.approx(1.0, abs=1e-6)
    assert torch.allclose(box * 2 - 1, torch.cat([inputs.amin(0), inputs.amax(0)]), atol=1e-6)


def test_prediction_draws_the_same_points_every_time_and_training_does_not() -> None:
    points, transform = cloud(1, 100), PointTransform(30)
    first = transform(points, (), "x", ("predict", "a"))[0]
    assert torch.equal(first, transform(points, (), "x", ("predict", "a"))[0])
    assert not torch.equal(first, transform(points, (), "x", (0, POINT_CLOUD, 7))[0])
    whole = PointTransform(100)(points, (), "x", ("k",))[0]
    assert {tuple(row) for row in first.tolist()} <= {tuple(row) for row in whole.tolist()}
    assert len({tuple(row) for row in first.tolist()}) == 30


def test_too_few_points_or_colours_are_errors() -> None:
    with pytest.raises(PointsError, match="here: 20 points, fewer than the 30 that the model reads"):
        PointTransform(30)(cloud(0, 20), (), "here", ())
    filled = PointTransform(30, allow_few_points=True)(cloud(0, 20), (), "here", ())[0]
    assert len({tuple(row) for row in filled.tolist()}) == 20
    with pytest.raises(PointsError, match="reads colours"):
        PointTransform(20, 6)(cloud(0, 20), (), "here", ())
    with pytest.raises(PointsError, match="all points are in one place"):
        PointTransform(20)(np.ones((20, 3), np.float32), (), "here", ())
    coloured = cloud(0, 20, columns=6)
    assert torch.equal(PointTransform(20, 6)(coloured, (), "here", ())[0][:, 3:], torch.from_numpy(coloured[:, 3:]))
    assert PointTransform(20)(coloured, (), "here", ())[0].shape == (20, 3)


def test_augmentation_moves_the_box_with_its_points() -> None:
    """The eight corners as points: after any motion the box is exactly their hull."""
    corners = cloud_box_corners([1.0, 2.0, 3.0, 4.0, 7.0, 5.0]).astype(np.float32)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        inputs, [box] = PointTransform(8)(corners, [[1.0, 2.0, 3.0, 4.0, 7.0, 5.0]], "x", (), rng)
        hull = torch.cat([inputs.amin(0), inputs.amax(0)])
        assert torch.allclose(box * 2 - 1, hull, atol=1e-6)
        still = PointTransform(8)(corners, (), "x", ())[0]
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


def test_object_augmentation_is_keyed_and_can_be_off(tmp_path: Path) -> None:
    write_set(tmp_path / "set", POINT_CLOUD, 1)
    reader = ManifestReader(tmp_path / "set")
    on = SampleTransform({"points": PointTransform(40)}, seed=3)
    off = SampleTransform({"points": PointTransform(40)}, seed=3, augment=False)
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


def test_dropped_points_become_the_first_point_or_points_that_stay() -> None:
    points = np.arange(300, dtype=np.float64).reshape(100, 3)
    shares = []
    for seed in range(40):
        first, kept = (drop_points(points, np.random.default_rng(seed), fill) for fill in ("first", "kept"))
        staying = (first == points).all(1)
        assert (first[~staying] == points[0]).all()
        assert (
            kept[staying][1:] == points[staying][1:]
        ).all()  # the first point may be dropped, and be its own place taker
        _, counts = np.unique(kept, axis=0, return_counts=True)
        assert len(kept) == 100
        assert counts.max() - counts.min() <= 1, "each that stays is there as often as the others"
        assert abs(len(counts) - staying.sum()) <= 1
        shares.append(len(counts))
    assert min(shares) < 25
    assert max(shares) > 90
    two = points[:2]
    assert all(drop_points(two, np.random.default_rng(s), "kept").shape == (2, 3) for s in range(50))  # none may stay


@pytest.mark.parametrize("frame", ["unit", "metres"])
def test_a_draw_of_points_leaves_some_in_the_region(frame: str) -> None:
    """3 of 3,000 points are in the box, 100 are drawn: nine draws of ten would miss them all. Draws that hold one stay as they are."""
    points = np.random.default_rng(0).uniform(0, 10, (3000, 3)).astype(np.float32)
    box = [4.0, 4.0, 11.0, 5.0, 5.0, 12.0]  # above all others
    points[:3] = [[4.5, 4.5, 11.5], [4.0, 4.0, 11.0], [5.0, 5.0, 12.0]]
    transform = PointTransform(3000, num_scene_points=100, frame=frame)
    chosen = set()
    for position in range(60):
        key = (0, "point_cloud_region", position)
        inputs, [numbers] = transform(points, [box], "x", key, np.random.default_rng(position))
        assert inputs.shape == (100, 3)
        assert len({tuple(row) for row in inputs.tolist()}) == 100, "no point twice"
        centre, radius = cloud_frame(points, "x")
        unit = inputs.double().numpy() if frame == "unit" else None
        if unit is None:  # the box is in the unit frame in either case
            turn = scene_motion(np.random.default_rng(position))[0]
            unit = (inputs.double().numpy() - turn @ centre) / radius
        low, high = (numbers.double().numpy() * 2 - 1).reshape(2, 3)
        inside = ((unit >= low - 1e-6) & (unit <= high + 1e-6)).all(1)
        assert inside.any(), position
        chosen.add(int(inside.sum()))
    assert 1 in chosen


def test_a_draw_that_holds_the_region_is_the_draw_without_it() -> None:
    points = np.random.default_rng(1).uniform(0, 10, (500, 3)).astype(np.float32)
    for box in ([0.0, 0.0, 0.0, 10.0, 10.0, 10.0], [20.0, 20.0, 20.0, 21.0, 21.0, 21.0]):  # all of them, and none
        with_box = PointTransform(50)(points, [box], "x", ("key",))[0]
        assert torch.equal(with_box, PointTransform(50)(points, (), "x", ("key",))[0])
