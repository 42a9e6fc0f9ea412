"""Small sets of shards for the tests of the data layer: real images, clouds and records of every modality, made in milliseconds."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from rb.core.modality import modality_spec
from rb.data.formats import Manifest, ObjectAnnotation, Record
from rb.data.shard_writer import ShardWriter
from rb.sources.points import encode_points

WIDTH, HEIGHT, NUM_POINTS = 20, 14, 40


def image_bytes(seed: int, kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def cloud(seed: int, num_points: int = NUM_POINTS, columns: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(3.0, 2.0, (num_points, columns)).astype(np.float32)


def record(modality: str, i: int, split: str = "train") -> Record:
    """Record i: one to three captions, or one to two objects with one to three captions each."""
    spec = modality_spec(modality)
    image = spec.source == "image"
    captions = [] if spec.regional else [f"red cube {i} {j}" for j in range(1 + i % 3)]
    box = [2.0, 1.0, 9.5, 8.0] if image else [1.0, 1.0, 1.0, 3.0, 4.0, 5.0]
    objects = [
        ObjectAnnotation(f"o{k}", [v + k for v in box], [f"green ball {i} {k} {j}" for j in range(1 + (i + k) % 3)])
        for k in range(1 + i % 2 if spec.regional else 0)
    ]
    return Record(f"{modality}/{i}.x", "small", split, WIDTH if image else 0, HEIGHT if image else 0, captions, objects)


def media(modality: str, i: int) -> tuple[bytes, str]:
    if modality_spec(modality).source == "image":
        return (image_bytes(i, "JPEG"), "jpg") if i % 2 else (image_bytes(i), "png")
    return encode_points(cloud(i)), "points.npy"


def write_set(
    folder: Path, modality: str, num_records: int, split: str = "train", first: int = 0, **options: object
) -> Manifest:
    """A folder of shards, three records a shard."""
    settings = {"max_shard_records": 3, **options}
    with ShardWriter(folder, "small", modality, split, **settings) as writer:  # type: ignore[arg-type]
        for i in range(first, first + num_records):
            writer.write(record(modality, i, split), *media(modality, i))
        writer.reject("nothing.png", "no_caption", "no caption in the annotations")
    assert writer.manifest is not None
    return writer.manifest
