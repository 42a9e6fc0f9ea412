"""What is there of each cell, in the output folder: its predictions, its scores, and a record of what they were made from.

The folder has a run folder's names, so ``rb table`` and ``rb compare`` read it too: ``predictions/CELL.jsonl``, ``metrics/CELL.json``; beside them
``cells/CELL.json``, the record. Nothing else is remembered: a job that goes on after a kill looks here.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rb.checkpoints.checkpoint import require
from rb.checkpoints.export_folder import is_export
from rb.core.config import FoundationConfig
from rb.core.files import file_sha256, sha256, write_json
from rb.core.run_layout import RUN_METRICS, RUN_PREDICTIONS
from rb.core.run_paths import open_foundation
from rb.core.strict_json import read
from rb.core.tasks import CAPTION
from rb.core.urls import location
from rb.data.index import ManifestReader
from rb.jobs.plan import Cell, Model, Plan

RECORDS = "cells"


@dataclass(frozen=True)
class Record:
    """What was made of a cell, and from what.

    Attributes:
        predicted: digest of all that decides the predictions; empty while there are none.
        scored: digest of what decides the scores besides; empty while there are none.
        cause: why there are none, in one line; empty where nothing failed.
    """

    predicted: str = ""
    scored: str = ""
    cause: str = ""


class Results:
    """The output folder of a plan."""

    def __init__(self, plan: Plan, out: Path) -> None:
        self.plan, self.out = plan, out

    def predictions(self, cell: Cell) -> Path:
        """Its predictions file."""
        return self.out / RUN_PREDICTIONS / f"{cell.name}.jsonl"

    def metrics(self, cell: Cell) -> Path:
        """Its scores."""
        return self.out / RUN_METRICS / f"{cell.name}.json"

    def lock(self, cell: Cell) -> Path:
        """Held by the process that works on it."""
        return self.out / RECORDS / f".{cell.name}.lock"

    def record(self, cell: Cell) -> Record:
        """What is noted of it; of a file that is missing or damaged nothing, so that it is made again."""
        try:
            found = read(self._record(cell))
            return Record(**found)
        except (OSError, ValueError, TypeError):
            return Record()

    def note(self, cell: Cell, record: Record) -> None:
        """Write the record, after what it speaks of."""
        self._record(cell).parent.mkdir(parents=True, exist_ok=True)
        write_json(self._record(cell), dataclasses.asdict(record))

    def forget(self, cell: Cell) -> None:
        """As if it had never been tried; its files stay."""
        self._record(cell).unlink(missing_ok=True)

    def score_key(self) -> str:
        """Of what decides scores besides the predictions."""
        return sha256(" ".join(self.plan.metrics))

    def is_predicted(self, cell: Cell, key: str) -> bool:
        """Whether the predictions are those of this key."""
        return self.record(cell).predicted == key and self.predictions(cell).is_file()

    def is_scored(self, cell: Cell) -> bool:
        """Whether the predictions that are there have their scores."""
        record = self.record(cell)
        return not record.cause and record.scored == self.score_key() and self.metrics(cell).is_file()

    def _record(self, cell: Cell) -> Path:
        return self.out / RECORDS / f"{cell.name}.json"


def predictions_key(plan: Plan, cell: Cell, model: str) -> str:
    """Digest of all that decides a cell's predictions, read without loading a model.

    Args:
        model: ``model_key`` of its model.

    Raises:
        ValueError, OSError: the data cannot be read.
    """
    task = plan.tasks[cell.task]
    asked: list[Any] = [
        task.modality,
        task.limit,
        task.decoding,
        plan.decode.get(cell.task),
        cell.variant,
        plan.batch_size,
    ]
    if task.task != CAPTION:
        classes = file_sha256(Path(task.classes)) if task.classes else None
        asked += [task.task, classes, list(task.templates), task.top_k]
    return sha256(json.dumps([model, ManifestReader(location(task.data)).digest, asked]))


def model_key(model: Model) -> str:
    """Digest of a model's weights and settings: a checkpoint's own digest, the sizes and times of the files of a foundation.

    Raises:
        ValueError, OSError: a checkpoint that is missing or damaged, a foundation that is not there.
    """
    settings: list[Any] = [list(model.settings), model.foundation]
    if model.base is not None:
        config = open_foundation(model.base, model.settings)
        parts = [str(dataclasses.asdict(config.model)), str(config.decode), _stamps(config.model.foundation)]
        return sha256(json.dumps([settings, *parts]))
    assert model.checkpoint is not None, "checked when the plan was read"
    path = Path(model.checkpoint)
    if is_export(path):
        return sha256(json.dumps([settings, [_stamp(file) for file in sorted(path.rglob("*")) if file.is_file()]]))
    checkpoint = require(path)
    return sha256(json.dumps([settings, str(checkpoint.path.absolute()), checkpoint.meta["digest"]]))


def _stamps(foundation: FoundationConfig) -> list[list[Any]]:
    folders = [Path(value) for value in dataclasses.asdict(foundation).values() if value]
    return [
        _stamp(file)
        for place in folders
        for file in ([place] if place.is_file() else sorted(place.iterdir()))
        if file.is_file()
    ]


def _stamp(file: Path) -> list[Any]:
    found = file.stat()
    return [str(file), found.st_size, found.st_mtime_ns]
