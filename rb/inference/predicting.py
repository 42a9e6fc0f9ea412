"""What a model says of every example of a manifest, written once each to a predictions file; on one process or sharded over ranks.

Takes a model from `rb/inference/load.py`: a trained one, or the base model (BLIP-2, which reads regions as whole images or as crops).
"""

from __future__ import annotations

import dataclasses
import platform
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

import rb
from rb.core import dist
from rb.core.config import DecodeConfig
from rb.core.files import CannotWriteError, sha256
from rb.core.modality import IMAGE, modality_spec
from rb.core.output import note
from rb.core.tasks import CAPTION, TASKS, VQA, Task
from rb.core.tensor_files import tensor_bytes
from rb.data.index import ManifestReader
from rb.data.pipeline import InputView, PredictDataset
from rb.data.predictions import Prediction, write_predictions
from rb.data.samples import check_fits
from rb.data.shuffled_boxes import shuffle_boxes
from rb.inference.cache_groups import use_of_groups
from rb.inference.chunks import Chunks, Piece
from rb.inference.generate import answer_batches, caption_batches
from rb.inference.load import Loaded
from rb.inference.ranking import RANKED, Ranking, Work
from rb.sources.table import source_of

# What the released code evaluates with, for every task (it also runs at 364 px), by kind of LLM. Its min_length 8 counts the token that
# generation starts from, so 7 are new; so does OPT's max_length 30, but T5 asks for 30 new ones.
RELEASED_DECODING = {
    kind: DecodeConfig(num_beams=5, max_new_tokens=longest, min_new_tokens=7, length_penalty=1.0, image_size=364)
    for kind, longest in (("decoder", 29), ("encoder_decoder", 30))
}
REFERENCE_POLICY = "all sentences of a source or box"
CHUNK_BATCHES = 32  # batches after which a rank keeps what it has
# Task -> the rows of this rank's examples, batch by batch.
ROWS: dict[str, Callable[..., Iterator[list[Prediction]]]] = {CAPTION: caption_batches, VQA: answer_batches}
WHOLE, CROPS, SHUFFLED, BLIND = "whole", "crops", "shuffled", "blind"


@dataclass(frozen=True)
class Job:
    """The examples of one prediction job, and what the model is given of each.

    Attributes:
        reader: the manifest.
        modality: how its examples are read.
        view: ``whole``; ``crops``, the inside of each box (the paper's BLIP-2 baseline for regions); ``shuffled``, each region gets
            another box of its source, one without another box is left out; ``blind``, a grey image or a cloud of one point.
        crop_context: widen crops by this share of the box on every side.
        limit: only the manifest's first examples.
        task: what is asked of them, a row of ``rb.core.tasks.TASKS``.
        ranking: of a task that ranks.

    Raises:
        ValueError: the manifest or the view does not fit the modality or the task.
    """

    reader: ManifestReader
    modality: str
    view: str = WHOLE
    crop_context: float = 0.0
    limit: int | None = None
    batch_size: int = 16
    num_workers: int = 0
    task: str = CAPTION
    ranking: Ranking = field(default_factory=Ranking)

    def __post_init__(self) -> None:
        assert self.view in (WHOLE, CROPS, SHUFFLED, BLIND), self.view
        regional = modality_spec(self.modality).regional
        if self.view == CROPS and not (regional and source_of(self.modality).can_crop):
            raise ValueError(f"crops need a modality with image boxes, not {self.modality}; leave --crop-boxes out")
        if self.view == SHUFFLED and not regional:
            raise ValueError(
                f"shuffled boxes need a modality with boxes, not {self.modality}; leave --shuffle-boxes out"
            )
        check_fits(self.reader, self.modality, predicting=True, of_questions=self.asked.of_questions)

    @property
    def asked(self) -> Task:
        """The row of its task."""
        return TASKS[self.task]

    @property
    def num_examples(self) -> int:
        """Examples within the limit."""
        total = self.reader.num_examples
        return total if self.limit is None else min(self.limit, total)


def decoding_of(task: Task, loaded: Loaded, given: Collection[str] = ()) -> DecodeConfig:
    """How a task's texts are generated: the run's settings, but for the task's own, of which those ``given`` stay the run's."""
    own = task.decoding.get(loaded.text.llm_kind, {})
    return dataclasses.replace(loaded.generation, **{name: value for name, value in own.items() if name not in given})


def predict(job: Job, loaded: Loaded, out: Path) -> int:
    """Ask the task of every example and write ``out``; rank 0 writes, all ranks must call. Returns the number of rows, on rank 0.

    A job that was killed goes on behind the last finished chunk of each rank (`rb/inference/chunks.py`) and writes the same bytes.

    Raises:
        ValueError: the model cannot read the modality.
        CannotWriteError: ``out`` cannot be written; the message says where the predictions are.
    """
    box_of = shuffle_boxes(job.reader).box_of if job.view == SHUFFLED else {}
    said = use_of_groups(job.reader, job.modality, loaded.transform)
    if said is not None and dist.is_main():
        note(said)
    dataset, read_as = _dataset(job, loaded, box_of), _read_as(job, loaded)
    chunks = Chunks(out, _identity(job, loaded), CHUNK_BATCHES * job.batch_size)
    if job.asked.ranks:
        work = Work(loaded, dataset, read_as, chunks, job.ranking, job.num_workers)
        rows, facts = RANKED[job.task](work)
    else:
        rows, facts = _said(job, loaded, dataset, read_as, chunks), {}
    if dist.is_main():
        _write(out, rows, _meta(job, loaded, len(rows)) | ({"ranking": facts} if facts else {}))
    chunks.remove()
    return len(rows)


def _said(job: Job, loaded: Loaded, dataset: PredictDataset, read_as: str, chunks: Chunks) -> list[Prediction]:
    """What the model says of all examples, in the manifest's order, on rank 0; elsewhere nothing."""

    def batches(first: int) -> Iterator[Piece]:
        return map(Piece, ROWS[job.task](loaded, dataset, read_as, job.num_workers, first=first))

    own = [row for piece in chunks.all(dataset, batches) for row in piece.rows]
    return [row for rows in dist.gather_objects(own) or () for row in rows]  # as ranks share examples out


def _write(out: Path, rows: Sequence[Prediction], meta: Mapping[str, Any]) -> None:
    """Write the predictions, or save hours of work: to the folder for temporary files, where ``out`` takes no more."""
    try:
        write_predictions(out, rows, meta)
    except CannotWriteError as error:
        rescued = Path(tempfile.mkdtemp(prefix="rb-predictions-")) / out.name
        write_predictions(rescued, rows, meta)
        raise CannotWriteError(
            error.errno,
            f"{error}; the predictions are in {rescued.parent}: make room and move both files to {out.parent}",
        ) from error


def _dataset(job: Job, loaded: Loaded, box_of: Mapping[int, int]) -> PredictDataset:
    """This rank's examples; of regions with shuffled boxes those that have another box."""
    limit: int | Sequence[int] | None = job.limit
    if job.view == SHUFFLED:
        limit = [number for number in range(job.num_examples) if number in box_of]
    return PredictDataset(
        job.reader,
        job.modality,
        loaded.transform,
        batch_size=job.batch_size,
        rank=dist.rank(),
        world_size=dist.world_size(),
        view=InputView(job.crop_context if job.view == CROPS else None, box_of, job.view == BLIND),
        limit=limit,
        of_questions=job.asked.of_questions,
    )


def _read_as(job: Job, loaded: Loaded) -> str:
    """The modality whose parts read the inputs: the base model reads images and their regions as BLIP-2 does."""
    trained = ", ".join(loaded.model.parts)
    if job.asked.ranks:
        if loaded.trained is None or job.modality not in loaded.model.parts:
            has = f"this checkpoint has {trained}" if loaded.trained else "a model without training has none"
            raise ValueError(
                f"--task {job.task} compares ITC vectors, which need trained heads of {job.modality}: {has}; give a checkpoint trained for it"
            )
        return job.modality
    if loaded.trained is None and source_of(job.modality).blip2_reads:
        return IMAGE
    if job.modality not in loaded.model.parts and job.modality != IMAGE:
        raise ValueError(f"this run has no {job.modality}: its model.train_modalities are {trained}")
    return job.modality


def _identity(job: Job, loaded: Loaded) -> dict[str, Any]:
    """What decides the rows of a job, and how they are put into batches."""
    trained = loaded.trained.values if loaded.trained is not None else {}
    files = [path for paths in loaded.built.files.values() for path in paths]
    return _meta(job, loaded, job.num_examples) | {
        "batch_size": job.batch_size,
        "frozen": [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in files],
        "trained": sha256(tensor_bytes(trained)),
    }


def _decoding(job: Job, loaded: Loaded) -> dict[str, Any]:
    """Settings of generation; of a task that ranks, which generates nothing, the image's size alone."""
    if job.asked.ranks:
        return {"image_size": loaded.generation.image_size}
    settings = dataclasses.asdict(loaded.generation)
    del settings["class_templates"]
    return settings | {"prompt": job.asked.prompt or loaded.text.prompt}


def _meta(job: Job, loaded: Loaded, num_rows: int) -> dict[str, Any]:
    made_by = "base" if loaded.trained is None else "checkpoint"
    path = job.reader.path
    meta = {
        "data": str(path.resolve() if isinstance(path, Path) else path),
        "dataset": job.reader.manifest.name,
        "split": job.reader.manifest.split,
        "modality": job.modality,
        "variant": made_by if job.view == WHOLE else job.view,
        "manifest_digest": job.reader.digest,
        "checkpoint": loaded.checkpoint,
        "foundation": dataclasses.asdict(loaded.built.config.foundation),
        "task": job.task,
        "decoding": _decoding(job, loaded),
        "reference_policy": REFERENCE_POLICY,
        "crop_context": job.crop_context if job.view == CROPS else None,
        "limit": job.limit,
        "versions": {
            "rb": rb.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }
    if loaded.accepted:
        meta["allowed"] = loaded.accepted
    if job.view == SHUFFLED:
        meta["left_out"] = {"regions without another box": job.num_examples - num_rows}
    return meta
