"""What the tests of tracking share: a store of MLflow that is made once (it takes 3 s), and copied."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import pytest

from rb.tracking.sqlite_store import prepare_store
from tests.support.processes import start_function


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole store, to be copied (making one takes 3 s); a process was killed while it made one there."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    process = start_function(make, path)
    end = time.monotonic() + 60
    while not any(found.stat().st_size > 100_000 for found in path.parent.glob(".mlflow.db.*.tmp")):
        assert time.monotonic() < end, process.output()
        time.sleep(0.005)
    process.send(signal.SIGKILL)
    process.wait()
    (path.parent / "left").write_text(",".join(sorted(found.name for found in path.parent.iterdir())))
    prepare_store(path)
    return path


def make(path: Path) -> None:
    prepare_store(path)


@pytest.fixture
def runs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of runs with a store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(made, tmp_path / "mlflow.db")
    return tmp_path
