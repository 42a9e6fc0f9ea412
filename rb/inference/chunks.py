"""What a prediction job has finished, kept beside its output, so that the same command goes on after a kill.

``.NAME.unfinished`` beside the predictions file ``NAME`` holds ``key.json`` (what the job is) and one file of rows for each finished chunk of a
rank. The folder is beside the work: where the disk takes no more, the job goes on without it. It goes when the predictions are written.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rb.core import dist
from rb.core import strict_json as strict
from rb.core.files import sha256, write_json, write_whole
from rb.core.output import note
from rb.core.patient import attempt
from rb.core.strict_json import dumps
from rb.data.predictions import Prediction, parse_predictions, prediction_lines

KEY_FILE = "key.json"


class Chunks:
    """The finished chunks of this rank. All ranks must make it, and call ``remove``: both are collective.

    Args:
        out: the predictions file.
        job: what decides the rows and their batches, ready for JSON. The chunks of another job are deleted, which is said.
        size: examples of a chunk; a multiple of the batch, so that a job that goes on has the same batches as one that nobody stopped.
    """

    def __init__(self, out: Path, job: Mapping[str, Any], size: int) -> None:
        self.folder, self.size = out.with_name(f".{out.name}.unfinished"), size
        key = sha256(dumps({**job, "ranks": dist.world_size(), "chunk": size}))
        if dist.is_main():
            self._begin(key)
        dist.barrier()

    def read(self, sources: Sequence[str], several: bool = False) -> list[list[Prediction]]:
        """The rows of each of this rank's finished chunks, up to the first that is not there or is not of its examples.

        Args:
            sources: the source id of each of this rank's examples, in order.
            several: an example is a source with a row for each of its questions; else it has one row.
        """
        chunks: list[list[Prediction]] = []
        for first in range(0, len(sources), self.size):
            path = self._path(len(chunks))
            try:
                found = parse_predictions(path.read_bytes(), str(path))
            except (OSError, ValueError):  # not there, or not as it was written: made again
                break
            of = [row.source_id for row in found]
            if (list(dict.fromkeys(of)) if several else of) != list(sources[first : first + self.size]):
                break
            chunks.append(found)
        return chunks

    def add(self, number: int, rows: Sequence[Prediction]) -> None:
        """Keep chunk ``number`` of this rank."""
        path = self._path(number)
        attempt(path, lambda: write_whole(path, prediction_lines(rows)))

    def remove(self) -> None:
        """The predictions are written."""
        dist.barrier()
        if dist.is_main():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"rank{dist.rank():05d}_chunk{number:06d}.jsonl"

    def _begin(self, key: str) -> None:
        """The folder of this job; what another job left in it is deleted."""
        try:
            found = strict.read(self.folder / KEY_FILE)
        except (OSError, ValueError):
            found = None
        if found == {"key": key}:
            return
        if found is not None:
            note(f"{self.folder}: was begun by another job (model, data, options or ranks); begins again")
        shutil.rmtree(self.folder, ignore_errors=True)
        attempt(self.folder / KEY_FILE, partial(self._make, key))

    def _make(self, key: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / KEY_FILE, {"key": key})
