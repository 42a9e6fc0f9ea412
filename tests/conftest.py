"""Shared fixtures: offline, one CPU thread per process, one tiny foundation for the whole session.

What tests share, so that none makes it again:
    ``foundation`` (here)              a tiny random BLIP-2, text branch and Point-BERT on disk; ``support.tiny`` makes configurations and batches
    ``finished`` (here)                a run folder and its export
    ``support.small_data``             tiny shards of every modality
    ``support.exported.make_run``      a run folder with random trained parameters, without training
    ``support.processes``              ranks and jobs as real processes in 0.1 s: forks of one server that has imported the libraries
    ``support.browser``                a headless Chromium
    ``s3`` (here), ``support.stores``  an S3 server, HTTP servers and a proxy that fails, on loopback
    ``support.weights_files``          checkpoint files in every public layout
"""

from __future__ import annotations

import os

# Before anything imports torch or a hub client: two ranks share two cores, and no test may reach for the network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

from rb.core.config import FoundationConfig
from tests.support import tiny
from tests.support.stores import S3

OURS = (
    "CUDA_",
    "DS_",
    "RB_",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_",
    "MASTER_",
)  # beginnings of variables that our processes read

torch.set_num_threads(1)
# The same examples every time, and no verdict that depends on how busy the machine is.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None, database=None, max_examples=60)
hypothesis.settings.load_profile("same")


@pytest.fixture(scope="session")
def foundation(tmp_path_factory: pytest.TempPathFactory) -> FoundationConfig:
    """Folders of the tiny random foundation; read-only for tests."""
    return tiny.write_foundation(tmp_path_factory.mktemp("foundation"))


@pytest.fixture(scope="session")
def finished(foundation: FoundationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``run``, as training leaves it, and ``export``, as `rb export` makes it of that run; read-only for tests."""
    from rb.exporting.writing import export_run
    from tests.support.exported import make_run

    folder = tmp_path_factory.mktemp("finished")
    make_run(folder, foundation).rename(folder / "run")
    export_run(folder / "run", folder / "export")
    return folder


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """An S3 server on loopback. Use it by ``tests.support.stores.reading_from``."""
    server = S3()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers in every run, alone or among others. RB_TEST_SEED draws others, to measure a bound's margin."""
    seed = int(os.environ.get("RB_TEST_SEED", "0"))
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (libraries under test may draw from it)
    torch.manual_seed(seed)


@pytest.fixture(autouse=True, scope="module")
def same_environment() -> Iterator[None]:
    """A file of tests leaves no variable behind that the next one, or its processes, would read. Made before a file's own fixtures."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        if name.startswith(OURS):
            del os.environ[name]
    os.environ.update({name: value for name, value in before.items() if name.startswith(OURS)})


def pytest_configure() -> None:
    """A shell starts what runs in its background with SIGINT ignored, and every process that a test starts and interrupts would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files come first, then those that start processes: `make test` gives each file to one of three workers, none slow may be last."""
    slow, dist = ({item.path for item in items if item.get_closest_marker(name)} for name in ("slow", "dist"))
    items.sort(key=lambda item: 0 if item.path in slow else 1 if item.path in dist else 2)
