"""A tiny model with random trained parameters as an engine serves it: two checkpoints, base and crops on one foundation.

``three``: the same with three checkpoints that say different things.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rb.api import RegionBLIP
from rb.core.config import FoundationConfig
from rb.serving.adapters import Adapter, load_adapters
from rb.serving.engine import Engine
from tests.support.exported import make_run


def picture(seed: int = 0, size: tuple[int, int] = (46, 34)) -> Image.Image:
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def points(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(60, 3)).astype(np.float32) * 3 + 5


def boxes(seed: int, count: int, size: tuple[int, int] = (46, 34)) -> list[list[float]]:
    draw = np.random.default_rng(seed)
    low = draw.uniform(0, 0.5, (count, 2)) * size
    high = low + (0.2 + draw.uniform(0, 0.3, (count, 2))) * size
    return np.concatenate([low, high], axis=1).round(1).tolist()


@pytest.fixture(scope="package")
def models(finished: Path, foundation: FoundationConfig) -> dict[str, Adapter]:
    """The run, and its export under another name."""
    del foundation
    return load_adapters([(None, finished / "run"), ("again", finished / "run")])


@pytest.fixture(scope="package")
def three(finished: Path, foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Adapter]:
    """Three checkpoints of different parameters, base and crops."""
    runs: list[tuple[str | None, Path]] = [(None, finished / "run")]
    for seed in (1, 2):
        runs.append((f"seed{seed}", make_run(tmp_path_factory.mktemp("other"), foundation, seed)))
    return load_adapters(runs)


@pytest.fixture(scope="package")
def plain(finished: Path) -> RegionBLIP:
    """The same run as users of the Python API load it."""
    return RegionBLIP.from_pretrained(finished / "run")


@pytest.fixture
def engine(models: dict[str, Adapter]) -> Iterator[Engine]:
    made = Engine(models)
    yield made
    made.close()
