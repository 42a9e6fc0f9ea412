"""Models made in a test, as ``rb/inference/load.py`` gives them."""

from __future__ import annotations

from pathlib import Path

from rb.core.config import DecodeConfig
from rb.inference.load import Loaded, Trained, example_transform
from rb.model.weights.build import Built


def as_loaded(built: Built, generation: DecodeConfig, trained: bool = False) -> Loaded:
    """A built model, ready to caption. ``trained``: its parameters count as those of a checkpoint."""
    made = (
        Trained(Path("tiny"), "tiny", 1, None, built.config, generation, 0, built.model.trainable_parameters(), {})
        if trained
        else None
    )
    return Loaded(built, example_transform(built, 0, generation.image_size), generation, 0, made)
