"""Frozen features in the place of media: what a frozen encoder makes of a source, stored once, and read by training in place of the source.

``rb/inference/cache_features.py`` writes such sets, which are shards like any other; their manifest holds a ``FeatureSet``. Media are the bytes of
a safetensors file: ``features`` [P, V], and ``frame`` where the boxes of the source need it (``Source.frame``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rb.core.strict_json import FormatError
from rb.core.tensor_files import tensor_bytes, tensors_of
from rb.sources.feature_set import FeatureSet
from rb.sources.source import Draws, Source, Stored

EXTENSION = "features.safetensors"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class FeaturesError(FormatError):
    """Stored features that cannot be used; the message says why."""


def encode_features(features: Tensor, frame: Tensor | None) -> bytes:
    """Features [P, V] and the frame of their source as the bytes of ``KEY.features.safetensors``."""
    return tensor_bytes({"features": features} | ({} if frame is None else {"frame": frame}))


def decode_features(stored: Stored, about: FeatureSet, frame_numbers: int) -> tuple[Tensor, Tensor | None]:
    """Features [P, V] and the frame of their source, ``frame_numbers`` numbers or none.

    Raises:
        FeaturesError: other tensors than the manifest says, or numbers that are not finite.
    """
    tensors = tensors_of(stored.media, stored.where, FeaturesError)
    features, frame = tensors.pop("features", None), tensors.pop("frame", None)
    found = None if frame is None else (list(frame.shape), frame.dtype)
    if features is None or tensors or found != (([frame_numbers], torch.float64) if frame_numbers else None):
        raise FeaturesError(
            f"{stored.where}: must hold the tensor 'features' and, for clouds alone, 'frame', 4 numbers of float64"
        )
    if features.dtype != DTYPES[about.dtype] or list(features.shape) != about.shape:
        raise FeaturesError(
            f"{stored.where}: holds features {list(features.shape)} of {features.dtype}, its manifest says {about.shape} of {about.dtype}"
        )
    if not (torch.isfinite(features).all() and (frame is None or torch.isfinite(frame).all())):
        raise FeaturesError(f"{stored.where}: its features are not finite")
    return features, frame


@dataclass(frozen=True)
class FeatureReader:
    """Reads stored features where ``source`` would read its media."""

    source: Source[Any]
    about: FeatureSet

    def read(
        self,
        transform: Any,
        stored: Stored,
        boxes: Sequence[Sequence[float]],
        draws: Draws,
        crop: tuple[Sequence[float], float] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """As ``Source.read``, but the encoder's output in place of its input: [P, V]."""
        assert crop is None, "refused before"
        assert not draws.mirror, "refused before"
        assert not (draws.augment and self.source.augments), "refused before"
        features, frame = decode_features(stored, self.about, self.source.frame_numbers)
        return features, [self.source.box_numbers(transform, box, stored.size, frame) for box in boxes]
