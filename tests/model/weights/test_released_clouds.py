"""The released code's choices about clouds: boxes as corners in metres, scenes in metres, their number of points."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rb.core.boxes import released_corners
from rb.core.config import ModelConfig
from rb.core.modality import IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION
from rb.sources.points import PointTransform

ROOM_BOX = (1.0, 2.0, 0.5, 3.0, 2.6, 1.5)  # extents 2, 0.6, 1


def room() -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform([0, 0, 0], [6, 5, 2.5], (300, 3)).astype(np.float32)


def test_corners_are_the_released_codes_eight() -> None:
    # Written out from its formulas: x +-1, y +-(extent of z)/2, z +-(extent of y)/2 about the centre (2, 2.3, 1).
    x, y, z = (3.0, 1.0), (2.8, 1.8), (1.3, 0.7)
    expected = [
        *[(x[0], y[0], z[0]), (x[0], y[0], z[1]), (x[1], y[0], z[1]), (x[1], y[0], z[0])],
        *[(x[0], y[1], z[0]), (x[0], y[1], z[1]), (x[1], y[1], z[1]), (x[1], y[1], z[0])],
    ]
    assert released_corners(ROOM_BOX) == pytest.approx([v for corner in expected for v in corner])


def test_scenes_in_metres_and_objects_in_the_unit_sphere() -> None:
    metres, unit = PointTransform(300, frame="metres"), PointTransform(300)
    assert torch.equal(metres(room(), [ROOM_BOX], "x", ())[0], torch.from_numpy(room()))
    assert torch.equal(metres(room(), (), "x", ())[0], unit(room(), (), "x", ())[0])
    assert unit(room(), [ROOM_BOX], "x", ())[0].norm(dim=1).max() == pytest.approx(1.0)


@pytest.mark.parametrize("augmented", [False, True])
def test_a_boxs_numbers_and_the_points_frame_are_two_choices(augmented: bool) -> None:
    def read(frame: str, box3d: str) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng(3) if augmented else None
        inputs, [box] = PointTransform(300, frame=frame, box3d=box3d)(room(), [ROOM_BOX], "x", (), rng)
        return inputs, box

    (in_metres, corners), (_, numbers) = read("metres", "metres_corners"), read("metres", "min_max")
    (in_unit, corners_of_unit), (_, unit_numbers) = read("unit", "metres_corners"), read("unit", "min_max")
    assert torch.allclose(numbers, unit_numbers, atol=1e-6)
    assert corners.shape == corners_of_unit.shape == (24,)
    # Wherever the points are turned about, the corners stay with them.
    offset = in_metres.mean(0) - torch.from_numpy(room()).mean(0)
    assert torch.allclose(corners.view(8, 3) - offset, corners_of_unit.view(8, 3), atol=1e-5)
    radius = (in_metres - in_metres.mean(0)).norm(dim=1).max()
    assert torch.allclose((in_metres - in_metres.mean(0)) / radius, in_unit, atol=1e-5)
    if not augmented:
        assert corners.tolist() == pytest.approx(released_corners(ROOM_BOX))
    else:
        assert offset.abs().max() > 1e-3


def test_scenes_may_have_another_number_of_points() -> None:
    transform = PointTransform(20, num_scene_points=50)
    assert transform(room(), (), "x", ())[0].shape == (20, 3)
    assert transform(room(), [ROOM_BOX], "x", ())[0].shape == (50, 3)


def test_width_of_boxes_follows_the_choice() -> None:
    for box3d, expected in (("min_max", 6), ("metres_corners", 24)):
        config = ModelConfig(box3d=box3d)
        assert [config.box_dim(m) for m in (IMAGE_REGION, POINT_CLOUD, POINT_CLOUD_REGION)] == [4, 0, expected]


@pytest.mark.parametrize("field", ["point_qformer", "box3d", "cloud_frame"])
def test_unknown_choices_are_refused_by_name(field: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.{field}: 'sideways' is not one of"):
        ModelConfig(**{field: "sideways"})  # type: ignore[arg-type]
