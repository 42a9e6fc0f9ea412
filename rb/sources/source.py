"""What a source must provide: the abstract class ``Source``, and the two small types that pass between it and the rest.

A source is a kind of input that a frozen encoder reads (images, point clouds). Its file in this folder holds everything that differs
between sources: how its media are stored, checked, read, transformed, encoded and drawn. ``rb/sources/table.py`` lists them, one row each.

Shape letters: B batch, P patches or groups, H and W pixels, N points, C point columns, V width of the vision encoder.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from rb.core.model_config import ModelConfig
from rb.core.seeding import generator
from rb.drawing.page import Html
from rb.sources.groups import Grouping, GroupSet, StoredGroups

Transform = TypeVar("Transform")


class FrozenEncoders(Protocol):
    """The model's frozen encoders; ``rb/model/encoded.py`` has them."""

    def encode_images(self, images: Tensor) -> Tensor:
        """BLIP-2's vision transformer: [B, 3, H, W], bytes or normalised numbers, to [B, P, V]."""

    def encode_points(self, points: Tensor) -> Tensor:
        """Point-BERT: [B, N, C], or grouped [B, G, 1 + K, C], to [B, 1 + G, point width]; ``ValueError`` if the model was built without it."""


@dataclass(frozen=True)
class EncoderSettings:
    """What the frozen encoders expect of their inputs.

    Attributes:
        image_side: pixels of a side.
        point_channels: 3 (xyz), or 6 (xyz and colour).
        grouping: of points; none without a point encoder.
    """

    image_side: int
    point_channels: int = 3
    grouping: Grouping | None = None


@dataclass(frozen=True)
class Stored:
    """One input as a shard holds it.

    Attributes:
        media: the bytes of the media file.
        size: (width, height) that the record states; (0, 0) for a source without.
        where: file and record, for errors.
        exif: which pixels of an image with an EXIF orientation size and boxes refer to: ``stored``, ``upright``, or none: nobody said.
        groups: of a cloud whose set has them.
    """

    media: bytes
    size: tuple[int, int]
    where: str
    exif: str | None = None
    groups: StoredGroups | None = None


@dataclass(frozen=True)
class Draws:
    """The random draws of one input, keyed, so that they depend on nothing else.

    Attributes:
        key: (seed, modality, position of the first sample that sees it) when training; ("predict", source id) when predicting.
        augment: whether the input is augmented.
        mirror: axes along which it is mirrored, of the source's ``mirror_axes``.
        dropped_points: what takes the place of dropped points, ``data.dropped_points``.
    """

    key: tuple[object, ...]
    augment: bool = False
    mirror: tuple[str, ...] = ()
    dropped_points: str = "first"

    def augmentation(self) -> np.random.Generator | None:
        """The augmentation's generator; none where nothing is augmented."""
        return generator("augment", *self.key) if self.augment else None


class Source(ABC, Generic[Transform]):
    """One kind of input. ``Transform`` is its own settings object, made once for a model by ``transform``.

    Attributes:
        name: as it stands in ``ModalitySpec.source``.
        extensions: of its media files in a shard, lower case, without the first dot.
        point_encoder: whether the point encoder reads it. Then the model has a point encoder, a projection behind it, and with
            ``model.point_qformer: separate`` a second Q-Former.
        blip2_reads: whether plain BLIP-2, without trained parts, can caption it as it captions an image.
        can_crop: whether ``read`` can cut the input to a box (the paper's BLIP-2 baseline for regions).
        page_hint: a sentence for pages that show its pictures; may be empty.
        look_tolerance: bits in which the looks of one and the same input may differ.
        region_unit: what ``region_sizes`` counts, in a few words.
        region_limits: where its histogram is cut, ascending; empty for a source without regions.
        augments: whether ``data.augment`` alone changes its inputs.
        frame_numbers: of ``frame``.
    """

    name: str
    extensions: tuple[str, ...]
    point_encoder: bool = False
    blip2_reads: bool = False
    can_crop: bool = False
    page_hint: str = ""
    look_tolerance: int = 0
    region_unit: str = ""
    region_limits: tuple[float, ...] = ()
    augments: bool = False
    frame_numbers: int = 0

    @abstractmethod
    def check(self, stored: Stored) -> None:
        """``FormatError`` unless the media can be used and agree with the record. Called when a record is written or indexed."""

    @abstractmethod
    def check_size(self, size: tuple[int, int], where: str) -> None:
        """``FormatError`` unless a record of this source may state this width and height."""

    @abstractmethod
    def box_problem(self, box: Sequence[float], size: tuple[int, int]) -> str | None:
        """Why a record's box cannot be used, in a few words; none if it can."""

    def check_whole(self, stored: Stored) -> None:
        """``FormatError`` unless the media can be read to their end, where ``check`` does not find out.

        Called for tars that others made; a converter reads in full whatever it writes.
        """

    def check_regions(self, stored: Stored, boxes: Sequence[Sequence[float]]) -> None:
        """``FormatError`` unless something of the media lies in each of a record's boxes; ``check`` and ``box_problem`` found no fault.

        Nothing to do for a source whose media fill their whole extent, as images do.
        """

    def region_sizes(self, stored: Stored, boxes: Sequence[Sequence[float]]) -> list[float]:  # noqa: ARG002 (for those who have some)
        """How large each region is, in ``region_unit``, for statistics of a set; nothing where regions have no size."""
        return []

    def mirror_axes(self, up: str) -> tuple[str, ...]:  # noqa: ARG002 (for those who have some)
        """Axes that inputs can be mirrored along, none where they cannot: first the one that exchanges left and right, then the line of sight.

        Args:
            up: the modality's upward axis (``ModalitySpec.up``).
        """
        return ()

    def look(self, stored: Stored) -> bytes:
        """A fingerprint, of equal length for all media, by which one input is found in two splits; here a digest of the stored bytes."""
        return hashlib.blake2b(stored.media, digest_size=16).digest()

    @abstractmethod
    def transform(self, config: ModelConfig, settings: EncoderSettings) -> Transform:
        """How this model wants its inputs."""

    @abstractmethod
    def read(
        self,
        transform: Transform,
        stored: Stored,
        boxes: Sequence[Sequence[float]],
        draws: Draws,
        crop: tuple[Sequence[float], float] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Stored bytes to the encoder's input, without a batch dimension, and each box as the model's numbers.

        Args:
            boxes: of regions that are asked about, in the record's units; none for a whole source.
            crop: a box and by which share of it every side is widened; only with ``can_crop``.

        Raises:
            FormatError: the media cannot be used.
        """

    def frozen_settings(self, transform: Transform, regional: bool) -> dict[str, Any] | None:  # noqa: ARG002 (for those who can)
        """What of the transform decides the frozen features, by name, ready for JSON; none: features of this source cannot be stored.

        A source that gives settings has ``box_numbers`` too where a modality of it is regional.
        """
        return None

    def drawn(self, transform: Transform, stored: Stored, regional: bool) -> str | None:  # noqa: ARG002 (for those that draw)
        """What a draw would change of this input even without augmentation, in a few words; none: it is always the same."""
        return None

    def frame(self, stored: Stored) -> Tensor | None:  # noqa: ARG002 (for those whose boxes need more than the record)
        """What ``box_numbers`` must know of the media, float64 [``frame_numbers``]; it is stored beside their features. None where ``frame_numbers`` is 0."""
        return None

    def groups_unused(
        self,
        transform: Transform,  # noqa: ARG002 (for those who have some)
        about: GroupSet,  # noqa: ARG002
        regional: bool,  # noqa: ARG002
        augment: bool,  # noqa: ARG002
    ) -> str | None:
        """Why the stored groups of a set cannot stand for those of its inputs, in a few words; none: ``read`` uses them."""
        return f"the encoder of {self.name} groups no points"

    def box_numbers(
        self, transform: Transform, box: Sequence[float], size: tuple[int, int], frame: Tensor | None
    ) -> Tensor:
        """A record's box as the model's numbers, where the input is as it is stored; ``frame`` as of the method of this name."""
        raise NotImplementedError(f"{self.name} gives no frozen_settings")

    @abstractmethod
    def encode(self, frozen: FrozenEncoders, inputs: Tensor) -> Tensor:
        """A batch of inputs to frozen features, [B, P, V] or, with ``point_encoder``, [B, P, point width]."""

    @abstractmethod
    def picture(self, stored: Stored, box: Sequence[float] | None, up: str, text: str, still: bool) -> Html:
        """The input with its box, as a piece of a page; ``ValueError`` where it cannot be read.

        Args:
            box: in the record's units.
            up: the modality's upward axis (``ModalitySpec.up``).
            text: for screen readers.
            still: for pages that run no script.
        """

    @abstractmethod
    def box_words(self, config: ModelConfig) -> str:
        """What the numbers of a box mean to a model of this configuration; goes into exports."""

    @abstractmethod
    def random_inputs(
        self, transform: Transform, rows: int, regional: bool, device: torch.device, draws: torch.Generator
    ) -> Tensor:
        """A batch of random inputs of the right shape, for checks of speed and memory."""
