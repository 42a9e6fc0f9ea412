"""What a prediction job has finished, kept beside its output, so that the same command goes on after a kill.

``.NAME.unfinished`` beside the predictions file ``NAME`` holds ``key.json`` (what the job is) and one file of rows for each finished chunk of a
rank, and one of tensors where a task needs some. The folder is beside the work: where the disk takes no more, the job goes on without it. It goes when the predictions are written.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rb.core import dist
from rb.core import strict_json as strict
from rb.core.files import sha256, write_json, write_whole
from rb.core.output import note
from rb.core.patient import attempt
from rb.core.strict_json import dumps
from rb.core.tensor_files import SUFFIX, read_tensor_file, tensor_bytes
from rb.data.pipeline import PredictDataset
from rb.data.predictions import Prediction, parse_predictions, prediction_lines

KEY_FILE = "key.json"


@dataclass(frozen=True)
class Piece:
    """What was made of some examples: their rows, and tensors [n, ...] of a task's own."""

    rows: list[Prediction]
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def joined(cls, pieces: Sequence[Piece]) -> Piece:
        """Several, one behind the other; at least one."""
        names = pieces[0].tensors
        tensors = {name: torch.cat([piece.tensors[name] for piece in pieces]) for name in names}
        return cls([row for piece in pieces for row in piece.rows], tensors)


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

    def all(
        self,
        dataset: PredictDataset,
        batches: Callable[[int], Iterator[Piece]],
        fits: Callable[[int, Piece], bool] = lambda _number, _piece: True,
        kind: str = "chunk",
    ) -> list[Piece]:
        """This rank's chunks in order: those of an earlier process that was stopped, and the rest, each kept as soon as it is made.

        Args:
            batches: what is made of the batches of ``dataset`` from a number on.
            fits: whether kept chunk number so-and-so is still what this job would make.
            kind: of chunks, a word in their names, where a job makes several.
        """
        made, size = self._read(dataset, kind, fits), self.size // dataset.batch_size
        if made:
            done, total = min(len(made) * self.size, len(dataset.examples)), len(dataset.examples)
            note(f"{self.folder}: rank {dist.rank()} goes on after {done:,} of its {total:,} examples")
        first, pieces = len(made) * size, list[Piece]()
        for number, piece in enumerate(batches(first), first + 1):
            pieces.append(piece)
            if number % size == 0 or number == len(dataset):
                made.append(Piece.joined(pieces))
                self._add(kind, len(made) - 1, made[-1])
                pieces = []
        return made

    def _read(self, dataset: PredictDataset, kind: str, fits: Callable[[int, Piece], bool]) -> list[Piece]:
        """The finished chunks, up to the first that is not there or is not of this rank's examples."""
        found: list[Piece] = []
        sources = dataset.sources
        for first in range(0, len(sources), self.size):
            path = self._path(kind, len(found))
            try:
                rows = parse_predictions(path.read_bytes(), str(path))
                tensors = path.with_suffix(SUFFIX)
                piece = Piece(rows, read_tensor_file(tensors) if tensors.exists() else {})
            except (OSError, ValueError):  # not there, or not as it was written: made again
                break
            of = [row.source_id for row in rows]
            own = (
                list(dict.fromkeys(of)) if dataset.of_questions else of
            )  # a source has a row for each of its questions
            if own != list(sources[first : first + self.size]) or not fits(len(found), piece):
                break
            found.append(piece)
        return found

    def _add(self, kind: str, number: int, piece: Piece) -> None:
        """Keep a chunk; its rows last, since they say that it is there."""
        path = self._path(kind, number)
        if piece.tensors:
            attempt(path, lambda: write_whole(path.with_suffix(SUFFIX), tensor_bytes(piece.tensors)))
        attempt(path, lambda: write_whole(path, prediction_lines(piece.rows)))

    def remove(self) -> None:
        """The predictions are written."""
        dist.barrier()
        if dist.is_main():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, kind: str, number: int) -> Path:
        return self.folder / f"rank{dist.rank():05d}_{kind}{number:06d}.jsonl"

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
