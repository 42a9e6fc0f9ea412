"""Shared fixtures: offline, one CPU thread per process, one tiny foundation for the whole session."""

from __future__ import annotations

import os

# Before anything imports torch or a hub client: two ranks share two cores, and no test may reach for the network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import pytest
import torch

from rb.core.config import FoundationConfig
from tests import tiny

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def foundation(tmp_path_factory: pytest.TempPathFactory) -> FoundationConfig:
    """Folders of the tiny random foundation; read-only for tests."""
    return tiny.write_foundation(tmp_path_factory.mktemp("foundation"))
