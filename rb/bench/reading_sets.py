"""The sets that ``rb bench data`` makes: pictures, clouds and scenes of the sizes and captions that the paper's data have, filled by draws."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from rb.core.modality import IMAGE, POINT_CLOUD, POINT_CLOUD_REGION
from rb.core.seeding import generator
from rb.data.formats import ObjectAnnotation, Record
from rb.data.shard_writer import ShardWriter
from rb.sources.points import EXTENSION, encode_points

PICTURE = (640, 480)  # width, height
CLOUD_POINTS, SCENE_POINTS = 8192, 40_000
ROOM = (8.0, 6.0, 2.5)  # metres
BOX = 0.6  # metres from the middle of a region to its sides


@dataclass(frozen=True)
class Kind:
    """A kind of set: its modality, captions of a source, and how a source is made, to media and extension."""

    name: str
    modality: str
    captions: int
    make: Callable[[np.random.Generator], tuple[bytes, str]]


def picture(rng: np.random.Generator) -> tuple[bytes, str]:
    """A JPEG of about 100 kB: coarse and fine patches of colour with a little noise."""
    parts = [rng.integers(0, 256, (rows, rows * 4 // 3, 3), dtype=np.uint8) for rows in (6, 48)]
    coarse, fine = (np.asarray(Image.fromarray(p).resize(PICTURE, Image.Resampling.BICUBIC), np.float32) for p in parts)
    pixels = 0.7 * coarse + 0.3 * fine + rng.normal(0, 6, coarse.shape)
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue(), "jpg"


def object_cloud(rng: np.random.Generator) -> tuple[bytes, str]:
    """8,192 points with colours."""
    return encode_points(_coloured(rng.normal(size=(CLOUD_POINTS, 3)), rng)), EXTENSION


def scene(rng: np.random.Generator) -> tuple[bytes, str]:
    """40,000 points with colours, in a room."""
    return encode_points(_coloured(rng.random((SCENE_POINTS, 3)) * ROOM, rng)), EXTENSION


def _coloured(xyz: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.concatenate([xyz, rng.random(xyz.shape)], axis=1).astype(np.float32)


KINDS = (
    Kind("images 640 x 480, 6 captions", IMAGE, 6, picture),
    Kind("clouds of 8,192 points, 1 caption", POINT_CLOUD, 1, object_cloud),
    Kind("clouds of 8,192 points, 6 captions", POINT_CLOUD, 6, object_cloud),
    Kind("scenes of 40,000 points, 14 captions", POINT_CLOUD_REGION, 14, scene),
)


def write(folder: Path, kind: Kind, num_records: int) -> None:
    """The set of a kind, in shards of 100 MB. The same bytes each time."""
    with ShardWriter(folder, folder.name, kind.modality, "train", max_shard_bytes=100_000_000) as writer:
        for number in range(num_records):
            rng = generator("bench reading", kind.name, number)
            media, extension = kind.make(rng)
            texts = [f"the {word} thing on the left of picture {number}" for word in range(kind.captions)]
            captions, objects = (texts, []) if kind.make is not scene else ([], _regions(texts, rng))
            width, height = PICTURE if kind.make is picture else (0, 0)
            record = Record(f"bench/{number}", folder.name, "train", width, height, captions, objects)
            writer.write(record, media, extension)


def _regions(texts: list[str], rng: np.random.Generator) -> list[ObjectAnnotation]:
    """A region a caption. One of 1.2 metres in such a room holds some hundred points."""
    middles = rng.uniform(BOX, np.array(ROOM) - BOX, (len(texts), 3))
    return [
        ObjectAnnotation(str(number), [*(middle - BOX).tolist(), *(middle + BOX).tolist()], [text])
        for number, (middle, text) in enumerate(zip(middles, texts, strict=True))
    ]
