"""The source ``points``: clouds read safely, put into the cloud's frame with their box, augmented when training; read by Point-BERT.

The cloud's frame: mean of all stored points at 0, largest radius 1, before any augmentation (the released code leaves scenes in metres:
`PointTransform.frame`). A box moves with its cloud through every step, as the axis-aligned hull of its turned corners.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rb.core.boxes import (
    cloud_box_problem,
    frame_to_unit,
    points_in_box,
    released_corners,
    transform_cloud_box,
    transform_cloud_boxes,
)
from rb.core.model_config import CLOUD_BOX_DIMS, ModelConfig
from rb.core.npy_files import npy_bytes
from rb.core.point_draws import with_boxes
from rb.core.seeding import generator
from rb.core.strict_json import FormatError
from rb.drawing.page import Html
from rb.drawing.pictures import cloud_canvas, cloud_still
from rb.sources.groups import Grouping, GroupSet
from rb.sources.point_augmentation import drop_points, object_motion, scene_motion
from rb.sources.source import Draws, EncoderSettings, FrozenEncoders, Source, Stored

EXTENSION = "points.npy"

# What numpy writes for such an array, and nothing else: its own reader evaluates the header as Python, and believes any shape.
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)\{'descr': '<f4', 'fortran_order': False, 'shape': \((\d{1,9}), ([36])\), \} *\n", re.DOTALL
)


class PointsError(FormatError):
    """A point cloud that cannot be used; the message says why."""


def encode_points(points: NDArray[np.floating]) -> bytes:
    """[N, 3 | 6] as the bytes of ``KEY.points.npy`` (float32)."""
    return npy_bytes(points, np.float32)


def decode_points(data: bytes, where: str) -> NDArray[np.float32]:
    """``KEY.points.npy`` to [N, 3 | 6] float32; a header that claims more than the file holds costs no memory.

    Raises:
        PointsError: not such an array, or a number that is not finite.
    """
    header = _NPY_HEADER.match(data)
    if header is None:
        raise PointsError(
            f"{where}: must be an npy file of version 1.0 with float32 [N, 3 or 6], starts with {data[:80]!r}"
        )
    shape, start = (int(header[2]), int(header[3])), 10 + int.from_bytes(header[1], "little")
    if shape[0] < 1 or header.end() != start or len(data) - start != shape[0] * shape[1] * 4:
        raise PointsError(f"{where}: {len(data) - start} bytes of points, but the header says {list(shape)} float32")
    points = np.frombuffer(data, np.float32, offset=start).reshape(shape)
    if not np.isfinite(points).all():
        raise PointsError(f"{where}: a coordinate is not finite; reject the cloud")
    return points


def cloud_frame(points: NDArray[np.floating], where: str) -> tuple[NDArray[np.float64], float]:
    """(centre [3], radius) of a cloud: the mean of its points, the largest distance from it. ``PointsError`` if it has no extent."""
    centre, radius, _ = _centred(points, where)
    return centre, radius


def _centred(points: NDArray[np.floating], where: str) -> tuple[NDArray[np.float64], float, NDArray[np.float64]]:
    """``cloud_frame``, and the coordinates [3, N] from the centre."""
    # Column by column, and each added up in order: a third of the time of a mean over [N, 3], and the same bits.
    columns = np.array(points[:, :3].T, dtype=np.float64, order="C")
    room = np.empty(len(points))
    centre = np.array([np.add.accumulate(column, out=room)[-1] for column in columns]) / len(points)
    columns -= centre[:, None]
    np.square(columns[0], out=room)
    for column in columns[1:]:
        room += np.square(column)
    radius = float(np.sqrt(room.max()))
    if not 0.0 < radius < np.inf:
        raise PointsError(f"{where}: all points are in one place (or too far apart for float32); reject the cloud")
    return centre, radius, columns


@dataclass(frozen=True)
class PointTransform:
    """Stored points [N', 3 | 6] -> [N, C] float32 in the cloud's frame, and the box as the model's numbers.

    Attributes:
        num_points: N. A larger cloud is thinned by a draw without repetition, which leaves at least one point in every box that is asked about.
        num_scene_points: N of scenes (clouds with a box) where that is another number.
        num_channels: C, 3 (colours are left out) or 6 (colours as stored behind the coordinates).
        allow_few_points: fill a cloud of too few points by repeating some, instead of an error.
        frame: of scenes (clouds with a box): "unit", or "metres": as stored, turned about the stored origin.
        box3d: "min_max", or "metres_corners"; see `rb.core.config.ModelConfig`. Neither changes what the other means.
        grouping: of the point encoder; none where nothing is known of it.
    """

    num_points: int
    num_channels: int = 3
    allow_few_points: bool = False
    num_scene_points: int | None = None
    frame: str = "unit"
    box3d: str = "min_max"
    grouping: Grouping | None = None

    def __post_init__(self) -> None:
        if self.num_points < 1 or self.num_channels not in (3, 6):
            raise ValueError(
                f"num_points {self.num_points} must be at least 1 and num_channels {self.num_channels} 3 or 6"
            )

    def __call__(
        self,
        points: NDArray[np.float32],
        boxes: Sequence[Sequence[float]],
        where: str,
        choice_key: tuple[object, ...],
        augment_rng: np.random.Generator | None = None,
        mirror: Sequence[str] = (),
        dropped_points: str = "first",
    ) -> tuple[Tensor, list[Tensor]]:
        """Points of one cloud, and the boxes that are asked about.

        Args:
            boxes: each min xyz, max xyz in the cloud's own units; any box makes the cloud a scene.
            choice_key: what the draw of N points is keyed by, see ``Draws.key``.
            augment_rng: the augmentation's draws; none for no augmentation.
            mirror: axes along which points and boxes are mirrored, before the augmentation moves them.
            dropped_points: as ``fill`` of `drop_points`.

        Returns:
            [N, C] float32, and each box as float32, [6] (v + 1) / 2 or [24].
        """
        if points.shape[1] < self.num_channels:
            raise PointsError(
                f"{where}: the point encoder reads colours, but the cloud has none; use a point encoder with 3 channels"
            )
        centre, radius, columns = _centred(points, where)
        scene = len(boxes) > 0
        metres = scene and self.frame == "metres"
        origin, scale = (np.zeros(3), 1.0) if metres else (centre, radius)
        wanted = self.wanted(scene)
        if len(points) == wanted:
            chosen = points
        else:
            choice = self._choice(len(points), wanted, where, choice_key)
            if len(points) > wanted:
                choice = with_boxes(choice, points, boxes, choice_key, same_size=True)
            chosen, columns = points[choice], columns[:, choice]
        # Columns of the coordinates in the cloud's frame, in double precision.
        columns = chosen[:, :3].T.astype(np.float64) if metres else np.divide(columns, radius, out=columns)
        colours = chosen[:, 3 : self.num_channels]
        to_frame, offset = np.eye(3) / scale, -origin / scale
        moved = transform_cloud_boxes(boxes, to_frame, offset)
        if augment_rng is not None or mirror:
            xyz = np.ascontiguousarray(columns.T)
            matrix, offset = np.diag([-1.0 if axis in mirror else 1.0 for axis in "xyz"]), np.zeros(3)
            if augment_rng is not None:
                if not scene:
                    dropped = drop_points(np.concatenate([xyz, colours], axis=1), augment_rng, dropped_points)
                    xyz, colours = np.asarray(dropped[:, :3], np.float64), dropped[:, 3:]
                motion, offset = scene_motion(augment_rng) if scene else object_motion(augment_rng)
                matrix = motion @ matrix
            columns = (xyz @ matrix.T + offset).T
            moved = transform_cloud_boxes(moved, matrix, offset)
            centre = matrix @ centre + offset if metres else centre
        numbers = np.empty((len(chosen), self.num_channels), np.float32)
        numbers[:, :3] = columns.T
        numbers[:, 3:] = colours
        inputs = torch.from_numpy(numbers)
        return inputs, [self._moved_box(box, metres, centre, radius) for box in moved]

    def wanted(self, scene: bool) -> int:
        """Points that are read of a cloud; a scene is a cloud with a box."""
        return (self.num_scene_points if scene else None) or self.num_points

    def group_set(self, scene: bool) -> GroupSet | None:
        """The groups that the point encoder finds in clouds that are not augmented; none where nothing is known of it."""
        frame = self.frame if scene else "unit"
        return None if self.grouping is None else GroupSet.of(self.grouping, self.wanted(scene), frame)

    def box_numbers(self, box: Sequence[float], centre: NDArray[np.float64], radius: float) -> Tensor:
        """A box in the cloud's own units as the model's numbers, where nothing is augmented; centre and radius as of ``cloud_frame``."""
        metres = self.frame == "metres"
        moved = box if metres else transform_cloud_box(box, np.eye(3) / radius, -centre / radius)
        return self._moved_box(moved, metres, centre, radius)

    def _moved_box(self, box: Sequence[float], metres: bool, centre: NDArray[np.float64], radius: float) -> Tensor:
        """The moved box, in metres or in the unit frame whose centre and radius are given, as the model's numbers."""
        if self.box3d == "metres_corners":
            stored = box if metres else transform_cloud_box(box, np.eye(3) * radius, centre)
            return torch.tensor(released_corners(stored), dtype=torch.float32)
        unit = transform_cloud_box(box, np.eye(3) / radius, -centre / radius) if metres else box
        return torch.tensor(frame_to_unit(unit), dtype=torch.float32)

    def _choice(self, available: int, wanted: int, where: str, key: tuple[object, ...]) -> NDArray[np.int64]:
        if available > wanted:
            return np.sort(generator("points", *key).choice(available, wanted, replace=False))
        if not self.allow_few_points:
            raise PointsError(
                f"{where}: {available} points, fewer than the {wanted} that the model reads; reject such clouds when preparing, "
                "or lower model.num_points (of scenes: model.num_scene_points)"
            )
        extra = generator("points", *key).integers(0, available, wanted - available)
        return np.concatenate([np.arange(available), extra])


class PointSource(Source[PointTransform]):
    """Clouds [N, 3 | 6]; boxes are min xyz, max xyz in the cloud's own units, and in the model's numbers as ``model.box3d`` says."""

    name = "points"
    extensions = (EXTENSION,)
    point_encoder = True
    augments = True
    frame_numbers = 4
    region_unit = "points in the box"
    region_limits = (10, 100, 1_000, 10_000)
    page_hint = "Drag a cloud to turn it; a double click turns it back."

    def check(self, stored: Stored) -> None:
        """Reads all points: finite float32 [N, 3 | 6], colours in [0, 1]."""
        points = decode_points(stored.media, stored.where)
        colours = points[:, 3:]
        if colours.size and not 0.0 <= colours.min() <= colours.max() <= 1.0:
            raise PointsError(
                f"{stored.where}: colours reach from {colours.min():g} to {colours.max():g}; a record has them in [0, 1]: "
                "divide them by 255 if they are 0 to 255"
            )
        if stored.groups is not None:
            stored.groups.decode(len(points), stored.where)

    def check_size(self, size: tuple[int, int], where: str) -> None:
        """A cloud has none."""
        if any(size):
            raise FormatError(f"{where}: width and height must be 0 for a point cloud, got {size[0]} x {size[1]}")

    def box_problem(self, box: Sequence[float], size: tuple[int, int]) -> str | None:  # noqa: ARG002 (a cloud has none)
        """Without volume."""
        return cloud_box_problem(box)

    def check_regions(self, stored: Stored, boxes: Sequence[Sequence[float]]) -> None:
        """Every box holds points: boxes of another coordinate frame than the points' are wrong without any other sign."""
        if not boxes:
            return
        points = decode_points(stored.media, stored.where)
        for i, box in enumerate(boxes):
            if not points_in_box(points, box):
                raise FormatError(
                    f"{stored.where}: objects[{i}]: box {list(box)} holds none of the {len(points)} points; are box and points in the same "
                    "coordinate frame? Reject the object if so"
                )

    def region_sizes(self, stored: Stored, boxes: Sequence[Sequence[float]]) -> list[float]:
        """Points that are stored, before a model takes its number of them."""
        points = decode_points(stored.media, stored.where) if boxes else None
        return [] if points is None else [float(points_in_box(points, box)) for box in boxes]

    def mirror_axes(self, up: str) -> tuple[str, ...]:
        """Both level ones: a cloud has no front, so either exchanges left and right for who stands in it."""
        return tuple(axis for axis in "xyz" if axis != up)

    def transform(self, config: ModelConfig, settings: EncoderSettings) -> PointTransform:
        """The run's number of points, frame and form of boxes."""
        return PointTransform(
            config.num_points,
            settings.point_channels,
            num_scene_points=config.num_scene_points,
            frame=config.cloud_frame,
            box3d=config.box3d,
            grouping=settings.grouping,
        )

    def read(
        self,
        transform: PointTransform,
        stored: Stored,
        boxes: Sequence[Sequence[float]],
        draws: Draws,
        crop: tuple[Sequence[float], float] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """[N, C], or [G, 1 + K, C] where stored groups can be used; and each box as the model's numbers."""
        assert crop is None, "a cloud cannot be cropped"
        points, augmentation = decode_points(stored.media, stored.where), draws.augmentation()
        inputs, numbers = transform(
            points, boxes, stored.where, draws.key, augmentation, draws.mirror, draws.dropped_points
        )
        groups = stored.groups
        if groups is None or self.groups_unused(transform, groups.about, len(boxes) > 0, draws.augment) is not None:
            return inputs, numbers
        index = groups.decode(len(points), stored.where).astype(np.int64)
        return inputs[torch.from_numpy(index)], numbers

    def groups_unused(self, transform: PointTransform, about: GroupSet, regional: bool, augment: bool) -> str | None:
        """Points that augmentation drops, or that a draw leaves out; other settings. A turn or a mirror of a scene keeps which points are near."""
        wanted = transform.group_set(regional)
        if wanted is None:
            return "this model has no point encoder"
        difference = about.difference(wanted)
        if difference is not None:
            return f"they were made with {difference}"
        return "data.augment: true drops points" if augment and not regional else None

    def frozen_settings(self, transform: PointTransform, regional: bool) -> dict[str, Any]:
        """Points, columns and frame."""
        return {
            "num_points": transform.wanted(regional),
            "num_channels": transform.num_channels,
            "cloud_frame": transform.frame if regional else "unit",
        }

    def drawn(self, transform: PointTransform, stored: Stored, regional: bool) -> str | None:
        """Which of a cloud's points are read, where it has more than the model reads."""
        available, wanted = len(decode_points(stored.media, stored.where)), transform.wanted(regional)
        return None if available <= wanted else f"which {wanted:,} of its {available:,} points are read"

    def frame(self, stored: Stored) -> Tensor:
        """Centre and radius, [4]."""
        centre, radius = cloud_frame(decode_points(stored.media, stored.where), stored.where)
        return torch.from_numpy(np.append(centre, radius))

    def box_numbers(
        self,
        transform: PointTransform,
        box: Sequence[float],
        size: tuple[int, int],  # noqa: ARG002 (a cloud has none)
        frame: Tensor | None,
    ) -> Tensor:
        """By ``model.box3d``."""
        assert frame is not None, "stored with the features"
        centre = frame.numpy()
        return transform.box_numbers(box, centre[:3], float(centre[3]))

    def encode(self, frozen: FrozenEncoders, inputs: Tensor) -> Tensor:
        """By the point encoder."""
        return frozen.encode_points(inputs)

    def picture(self, stored: Stored, box: Sequence[float] | None, up: str, text: str, still: bool) -> Html:
        """A cloud to turn with the mouse, or a still picture of it."""
        return (cloud_still if still else cloud_canvas)(decode_points(stored.media, stored.where), box, up, text)

    def box_words(self, config: ModelConfig) -> str:
        """By ``model.box3d``."""
        if config.box3d == "min_max":
            return "min xyz, max xyz in the cloud's frame (mean 0, largest radius 1), each mapped by (v + 1) / 2"
        return f"{CLOUD_BOX_DIMS[config.box3d]} numbers, model.box3d: {config.box3d}"

    def random_inputs(
        self, transform: PointTransform, rows: int, regional: bool, device: torch.device, draws: torch.Generator
    ) -> Tensor:
        """Uniform in the cube of side 2 around 0."""
        points = transform.num_scene_points if regional and transform.num_scene_points else transform.num_points
        return torch.rand(rows, points, transform.num_channels, device=device, generator=draws) * 2 - 1
