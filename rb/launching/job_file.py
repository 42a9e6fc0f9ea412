"""`RUN_DIR/launch/ATTEMPT.json`: where the agents of a job find their controller, and what must not stand on a command line. Mode 0600.

It lies in the run folder, which every node of a run must see; an agent that does not find it is on a node where the folder is not shared.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rb.core.strict_json import parse

FOLDER = "launch"
FORMAT = 1


@dataclass(frozen=True)
class JobFile:
    """Its content."""

    attempt: str
    """Name of this start of the run."""
    token: str
    """What controller and agents know of each other (`wire.py`)."""
    port: int
    """The controller's."""
    addresses: tuple[str, ...]
    """Of the controller, in the order in which agents try them."""
    silence_s: float
    """An agent that has not heard its controller for so long is on its own."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables for agents and ranks, secret ones too."""


def job_path(run_dir: Path, attempt: str) -> Path:
    """Where the file of an attempt lies, absolute."""
    return Path(os.path.abspath(run_dir)) / FOLDER / f"{attempt}.json"  # noqa: PTH100 (links as they are)


def write_job(path: Path, job: JobFile) -> None:
    """Write the file, readable for this user alone from its first byte on; its folder is made."""
    import json

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        json.dump({"format": FORMAT} | asdict(job), file)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def read_job(path: Path) -> JobFile:
    """Read the file.

    Raises:
        ValueError: it is not there, or none that this version can read; names it, and the remedy.
    """
    try:
        tree = parse(path.read_bytes(), str(path))
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read on this node ({error.strerror}); the run folder must lie on a disk that all nodes share"
        ) from error
    if not isinstance(tree, dict) or tree.pop("format", None) != FORMAT:
        raise ValueError(f"{path}: is of another version of this package; install the same one on every node")
    try:
        job = JobFile(**tree)
        return JobFile(**{**asdict(job), "addresses": tuple(job.addresses)})
    except TypeError as error:
        raise ValueError(
            f"{path}: is not a job file of this version ({error}); install the same one on every node"
        ) from error
