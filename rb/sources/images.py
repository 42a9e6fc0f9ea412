"""The source ``image``: decoded safely, cut to a box where asked, squashed to the ViT's size; read by BLIP-2's vision encoder.

Images travel as bytes, [3, side, side] uint8, and become the encoder's numbers on its device (``Normalisation``). These are equal, number by
number, to those of transformers' PIL image processor of BLIP-2 for the same settings. Pixels of shards are taken as stored: COCO's
boxes refer to them, so an EXIF orientation is applied only where a manifest says so (``rb.api`` turns photos upright; see ``pixels.py``).

Pillow is imported where an image is read: models are built, and checked by ``launch/gpu_check.sh``, on machines without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rb.core.boxes import EDGE_TOLERANCE, clip_xyxy, image_box_problem, mirror_xyxy, normalise_image_box
from rb.core.model_config import ModelConfig
from rb.core.strict_json import FormatError
from rb.drawing.page import Html
from rb.drawing.pictures import image_with_box
from rb.sources.source import Draws, EncoderSettings, FrozenEncoders, Source, Stored

if TYPE_CHECKING:
    from PIL import Image

EXTENSIONS = ("jpg", "jpeg", "png", "webp")

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def crop_to_box(image: Image.Image, box: Sequence[float], context: float = 0.0) -> Image.Image:
    """The part of ``image`` inside ``box`` (pixels xyxy, cut to whole pixels towards zero and to the image; never empty).

    ``context`` widens the box by that share of its width and height on every side. The paper's BLIP-2 baseline for regions uses none.
    """
    x1, y1, x2, y2 = box
    dx, dy = (x2 - x1) * context, (y2 - y1) * context
    x1, y1, x2, y2 = (math.trunc(v) for v in clip_xyxy((x1 - dx, y1 - dy, x2 + dx, y2 + dy), image.width, image.height))
    x1, y1 = min(x1, image.width - 1), min(y1, image.height - 1)
    return image.crop((x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)))


@dataclass(frozen=True)
class ImageTransform:
    """RGB image -> [3, size, size] uint8: squashed (no aspect kept, no crop), bicubic."""

    size: int
    whole_pixels: bool = False  # of boxes

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size of the image processor: {self.size} cannot be used; it must be at least 1 pixel")

    def __call__(self, image: Image.Image) -> Tensor:
        """One decoded image."""
        from PIL.Image import Resampling

        resized = image.resize((self.size, self.size), Resampling.BICUBIC)
        return torch.from_numpy(np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1)))


@dataclass(frozen=True)
class Normalisation:
    """How bytes of a colour channel become the ViT's numbers: (v / 255 - mean) / std."""

    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean and std of the image processor: {self.mean}, {self.std} cannot be used")

    def table(self) -> Tensor:
        """The number of every byte, [3, 256] float32. A table gives the same numbers on every device."""
        # The same order of operations and types as transformers, so that the base model sees the very same numbers.
        scaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
        mean, std = (np.array(v, np.float32)[:, None] for v in (self.mean, self.std))
        return torch.from_numpy((scaled - mean) / std)


def normalised(images: Tensor, table: Tensor) -> Tensor:
    """Bytes [B, 3, H, W] as the numbers of ``table`` (``Normalisation``), float32; what is not uint8 is normalised already."""
    if images.dtype != torch.uint8:
        return images
    first = torch.arange(3, dtype=torch.int32, device=images.device).mul_(256).view(3, 1, 1)  # of each channel's row
    return table.flatten().index_select(0, (images.int() + first).flatten()).view(images.shape)


def look_of(image: Image.Image) -> bytes:
    """A difference hash: 17 x 16 grey pixels, and whether each is brighter than its right neighbour (256 bits).

    Another size, another quality of JPEG and small changes of colour turn few of them.
    """
    from PIL.Image import Resampling

    pixels = np.asarray(image.convert("L").resize((17, 16), Resampling.BOX))
    return np.packbits(pixels[:, :-1] > pixels[:, 1:]).tobytes()


def _pixels(stored: Stored) -> Image.Image:
    """All pixels in RGB, of the size that the record states."""
    from rb.sources.pixels import decode_in_set

    return decode_in_set(stored.media, stored.where, stored.exif, stored.size)


class ImageSource(Source[ImageTransform]):
    """JPEG, PNG or WebP images; boxes are x1 y1 x2 y2 in its pixels, and in [0, 1] for the model."""

    name = "image"
    extensions = EXTENSIONS
    blip2_reads = True
    can_crop = True
    look_tolerance = 16
    region_unit = "share of the image's area"
    region_limits = (0.001, 0.01, 0.05, 0.2, 0.5)

    def check(self, stored: Stored) -> None:
        """Reads the header alone: it must be an image of the size that the record states."""
        from rb.sources.pixels import size_in_set

        width, height = size_in_set(stored.media, stored.where, stored.exif)
        if (width, height) != stored.size:
            raise FormatError(
                f"{stored.where}: the record says {stored.size[0]} x {stored.size[1]}, the image has {width} x {height}"
            )

    def check_whole(self, stored: Stored) -> None:
        """All pixels decode."""
        _pixels(stored)

    def check_size(self, size: tuple[int, int], where: str) -> None:
        """The image's own size."""
        if min(size) <= 0:
            raise FormatError(f"{where}: width and height must be the image's size, got {size[0]} x {size[1]}")

    def box_problem(self, box: Sequence[float], size: tuple[int, int]) -> str | None:
        """Empty, or outside the image."""
        problem = image_box_problem(box, *size)
        return f"{problem} (image {size[0]} x {size[1]}, tolerance {EDGE_TOLERANCE} px)" if problem else None

    def region_sizes(self, stored: Stored, boxes: Sequence[Sequence[float]]) -> list[float]:
        """Area by area; reads no pixel."""
        width, height = stored.size
        return [(x1 - x0) * (y1 - y0) / (width * height) for x0, y0, x1, y1 in boxes]

    def mirror_axes(self, up: str) -> tuple[str, ...]:  # noqa: ARG002 (a picture has one level axis)
        """From left to right."""
        return ("x",)

    def look(self, stored: Stored) -> bytes:
        """As of ``look_of``."""
        return look_of(_pixels(stored))

    def transform(self, config: ModelConfig, settings: EncoderSettings) -> ImageTransform:
        """The image processor's settings, and what becomes of a box."""
        whole_pixels = config.box2d == "whole_pixels"
        return ImageTransform(settings.image_side, whole_pixels)

    def read(
        self,
        transform: ImageTransform,
        stored: Stored,
        boxes: Sequence[Sequence[float]],
        draws: Draws,
        crop: tuple[Sequence[float], float] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """[3, side, side] uint8, and each box in [0, 1]."""
        from PIL import ImageOps

        image = _pixels(stored)
        if crop is not None:
            image = crop_to_box(image, *crop)
        if draws.mirror:
            assert crop is None, "crops are for prediction, mirrors for training"
            image = ImageOps.mirror(image)
            boxes = [mirror_xyxy(box, stored.size[0]) for box in boxes]
        return transform(image), [self.box_numbers(transform, box, stored.size, None) for box in boxes]

    def frozen_settings(self, transform: ImageTransform, regional: bool) -> dict[str, Any]:  # noqa: ARG002
        """The side; mean and standard deviation are the encoder's."""
        return {"image_size": transform.size}

    def box_numbers(
        self,
        transform: ImageTransform,
        box: Sequence[float],
        size: tuple[int, int],
        frame: Tensor | None,  # noqa: ARG002
    ) -> Tensor:
        """In [0, 1]."""
        return torch.tensor(normalise_image_box(box, *size, transform.whole_pixels), dtype=torch.float32)

    def encode(self, frozen: FrozenEncoders, inputs: Tensor) -> Tensor:
        """By the vision encoder."""
        return frozen.encode_images(inputs)

    def picture(self, stored: Stored, box: Sequence[float] | None, up: str, text: str, still: bool) -> Html:  # noqa: ARG002
        """The image with its box; the same with and without scripts."""
        return image_with_box(_pixels(stored), box, text)

    def box_words(self, config: ModelConfig) -> str:  # noqa: ARG002 (one form only)
        """Normalised corners."""
        return "x1 y1 x2 y2, divided by the image's width and height"

    def random_inputs(
        self,
        transform: ImageTransform,
        rows: int,
        regional: bool,  # noqa: ARG002
        device: torch.device,
        draws: torch.Generator,
    ) -> Tensor:
        """Any byte is as likely as any other."""
        shape = (rows, 3, transform.size, transform.size)
        return torch.randint(256, shape, dtype=torch.uint8, device=device, generator=draws)
