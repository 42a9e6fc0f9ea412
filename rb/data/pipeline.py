"""Loaders: batches of a training run from any step on, and every example of a manifest exactly once for prediction.

What a batch holds is a function of (configuration, step, micro-step, rank), so worker processes only decide how fast it comes. The schedule
is an argument; this file does not know which orders exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from operator import itemgetter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from rb.core.batch import Batch, Sample
from rb.core.config import DataSource
from rb.core.schedules import Turn
from rb.core.step_layout import StepLayout
from rb.core.text import TextProcessor
from rb.data.collate import collate, stack_inputs
from rb.data.formats import find_manifest
from rb.data.groups import Groups, UnsortedError
from rb.data.index import Loaded, ManifestReader, index_again
from rb.data.loading import TIMEOUT_S, Batches
from rb.data.order import UNGROUPED, Arrangement, Place, Stream
from rb.data.samples import SampleTransform, check_fits, questions_of


@dataclass(frozen=True)
class TrainingData:
    """One modality's manifests and the endless stream over them."""

    readers: list[ManifestReader]
    stream: Stream

    def place(self, position: int) -> tuple[ManifestReader, Place]:
        """The manifest and the place in it of ``position``."""
        place = self.stream.locate(position)
        return self.readers[place.manifest], place

    def read_ahead(self, positions: Sequence[int]) -> None:
        """These positions are read next: what stores hold of them is fetched now, several records at a time."""
        if any(reader.stored for reader in self.readers):
            places = [self.place(position) for position in positions]
            for reader in self.readers:
                reader.read_ahead([place.sample for found, place in places if found is reader])

    def groups(self, positions: range) -> Iterator[tuple[list[Loaded], int, slice]]:
        """What a micro-batch of these positions reads: each group's samples, its first position, and which of it are shown here."""
        self.read_ahead(positions)
        position = positions.start
        while position < positions.stop:
            reader, place = self.place(position)
            shown = slice(position - place.group_start, positions.stop - place.group_start)
            yield reader.samples(place.group), place.group_start, shown
            position = place.group_start + len(place.group)


def open_training_data(
    sources: Mapping[str, Sequence[DataSource]], seed: int, arrangement: Arrangement = UNGROUPED
) -> dict[str, TrainingData]:
    """Open and verify the manifests of ``data.train``; ``ValueError`` names a missing, altered or unfit one."""
    opened = {}
    for modality, listed in sources.items():
        readers = [ManifestReader(find_manifest(source.manifest)) for source in listed]
        for reader in readers:
            check_fits(reader, modality, predicting=False)
        check_same_kind(readers)
        if len({reader.manifest.groups for reader in readers}) > 1:  # a batch could not hold grouped clouds and others
            for reader in readers:
                reader.use_groups = False
        repeats = [source.repeat for source in listed]
        sizes = [min(len(r), s.first or len(r)) for r, s in zip(readers, listed, strict=True)]
        groups = [groups_of(r, size, arrangement) for r, size in zip(readers, sizes, strict=True)]
        opened[modality] = TrainingData(readers, Stream(modality, sizes, repeats, seed, arrangement, groups))
    return opened


def groups_of(reader: ManifestReader, size: int, arrangement: Arrangement) -> Groups | None:
    """The first ``size`` samples of a manifest by their records, where the order asks for it; ``ValueError`` if they are not in order."""
    if not arrangement.needs_groups:
        return None
    try:
        return arrangement.groups(reader.index.samples["record"][:size])
    except UnsortedError as error:
        raise ValueError(
            f"{reader.path.parent / reader.manifest.index.file}: {error} is out of the order of its records, which "
            "data.group_by_source and data.order: blocks need; make the index again: "
            f"{index_again(reader.path, reader.manifest)}"
        ) from None


def check_same_kind(readers: Sequence[ManifestReader]) -> None:
    """``ValueError`` where some of the sets of one modality hold frozen features and some do not: a batch could not hold both."""
    stored = {reader.manifest.features is not None: reader for reader in readers}
    if len(stored) == 2:
        raise ValueError(
            f"{stored[True].path}: holds frozen features, {stored[False].path} does not, and both are of {readers[0].manifest.modality}; "
            "list features of all of its sets, or of none"
        )


class TrainDataset(Dataset[Batch]):
    """Item ``step * grad_accum_steps + micro_step`` is this rank's micro-batch of it.

    The k-th step of a modality holds the positions [k * G, (k + 1) * G) of its stream, G being the global batch size; ``StepLayout`` divides
    them. So the same positions meet in a step, and in a contrastive batch, on any number of ranks.

    Args:
        turn_at: the schedule, step -> modality and its step.
        total_steps: of the run; the dataset ends there.
        layout: of a step.
        rank: whose micro-batches these are.
    """

    def __init__(
        self,
        data: Mapping[str, TrainingData],
        turn_at: Callable[[int], Turn],
        transform: SampleTransform,
        text: TextProcessor,
        *,
        total_steps: int,
        layout: StepLayout,
        rank: int,
    ) -> None:
        assert 0 <= rank < layout.world_size, (rank, layout)
        self.data, self.turn_at, self.transform, self.text = dict(data), turn_at, transform, text
        self.total_steps, self.layout, self.rank = total_steps, layout, rank

    def __len__(self) -> int:
        """Micro-batches of the whole run."""
        return self.total_steps * self.layout.grad_accum_steps

    def positions(self, item: int) -> tuple[str, range]:
        """(modality, positions in its stream) of a micro-batch, without reading it."""
        step, micro_step = divmod(item, self.layout.grad_accum_steps)
        turn = self.turn_at(step)
        start = turn.modality_step * self.layout.global_batch_size + self.layout.start(self.rank, micro_step)
        return turn.modality, range(start, start + self.layout.micro_batch_size)

    def __getitem__(self, item: int) -> Batch:
        """Read, transform and collate; ``ShardCorruptionError`` or ``FormatError`` for a record that cannot be used: never skipped."""
        modality, positions = self.positions(item)
        samples: list[Sample] = []
        for group, start, shown in self.data[modality].groups(positions):
            samples += self.transform.training_samples(group, modality, start, shown)
        return collate(samples, self.text, self.transform.seed)


@dataclass(frozen=True)
class PredictionBatch:
    """Examples of one prediction step.

    Attributes:
        inputs: [S, ...], each source piece once.
        boxes: [B, box_dim], none for whole sources.
        source_rows: [B] int64, the row of ``inputs`` that each example sees; none where S is B, row by row.
    """

    samples: list[Sample]
    inputs: Tensor
    boxes: Tensor | None
    source_rows: Tensor | None = None

    def to(self, device: torch.device, with_boxes: bool) -> PredictionBatch:
        """A copy whose tensors live on ``device``; without boxes where they are not wanted."""
        boxes, source_rows = (
            None if one is None else one.to(device, non_blocking=True)
            for one in (self.boxes if with_boxes else None, self.source_rows)
        )
        return PredictionBatch(self.samples, self.inputs.to(device, non_blocking=True), boxes, source_rows)


@dataclass(frozen=True)
class InputView:
    """What a model is given of an example; all of it by default.

    Attributes:
        crop: of an image only the inside of the example's box, widened by this share of the box on every side.
        box_of: example to the object of its record whose box is given instead of its own (``rb/data/shuffled_boxes.py``).
        blind: numbers of 0 in place of the input, the same for every example: a grey image (the mean of all), or a cloud of one point.
    """

    crop: float | None = None
    box_of: Mapping[int, int] = field(default_factory=dict)
    blind: bool = False


class PredictDataset(Dataset[PredictionBatch]):
    """Item i is the i-th batch of this rank's examples: whole records, one behind the other, of the manifest or of what ``limit`` leaves.

    Examples of one record within a batch are read and encoded once.

    Args:
        limit: only the first so many examples, or only those of these numbers, which rise.
        view: what the model is given of each.
        of_questions: an example is a record with all its questions, each of which is a row of its batch.

    Attributes:
        examples: numbers of this rank's. All ranks' one behind the other are in the manifest's order.
        rounds: batches of the rank that has the most.
    """

    def __init__(
        self,
        reader: ManifestReader,
        modality: str,
        transform: SampleTransform,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        view: InputView = InputView(),
        limit: int | Sequence[int] | None = None,
        of_questions: bool = False,
    ) -> None:
        check_fits(reader, modality, predicting=True, of_questions=of_questions)
        if batch_size < 1:
            raise ValueError(f"batch size must be at least 1, got {batch_size}")
        self.reader, self.modality, self.transform = reader, modality, transform
        self.batch_size, self.view, self.of_questions = batch_size, view, of_questions
        total = min(limit, reader.num_examples) if isinstance(limit, int) else reader.num_examples
        chosen = range(total) if limit is None or isinstance(limit, int) else limit
        starts = _shares(reader.records_of(chosen), world_size)
        self.examples: Sequence[int] = chosen[starts[rank] : starts[rank + 1]]
        self.rounds = -(-max(stop - start for start, stop in pairwise(starts)) // batch_size)

    @property
    def sources(self) -> list[str]:
        """The source id of each of ``examples``."""
        return [self.reader.index.source_id(int(record)) for record in self.reader.records_of(self.examples)]

    def __len__(self) -> int:
        """Batches of this rank; the last may be smaller."""
        return -(-len(self.examples) // self.batch_size)

    def __getitem__(self, item: int) -> PredictionBatch:
        """Read and transform one batch; the same errors as in training."""
        numbers = self.examples[item * self.batch_size : (item + 1) * self.batch_size]
        self.reader.read_ahead([self.reader.sample_of(number) for number in numbers])
        samples: list[Sample] = []
        for _, rows in groupby(zip(self.reader.records_of(numbers), numbers, strict=True), key=itemgetter(0)):
            of_record = [number for _, number in rows]
            loaded = self.reader.samples([self.reader.sample_of(number) for number in of_record])
            box_of = [self.view.box_of.get(number) for number in of_record]
            shown = self.transform.prediction_samples(loaded, self.modality, self.view.crop, box_of)
            samples += questions_of(shown[0], loaded[0].record) if self.of_questions else shown
        boxes = [sample.box for sample in samples if sample.box is not None]
        inputs, source_rows = stack_inputs(samples)
        if self.view.blind:
            inputs = torch.zeros(inputs.shape)  # bytes of 0 would be black: these numbers are normalised already
        return PredictionBatch(samples, inputs, torch.stack(boxes) if boxes else None, source_rows)


def _shares(records: NDArray[np.int64], world_size: int) -> list[int]:
    """For examples of ``records`` [N], the first of each rank's, and N: whole records for each, as even as they allow."""
    edges = np.append(np.flatnonzero(np.diff(records, prepend=-1)), len(records))  # where a record begins, and the end
    wanted = np.arange(world_size + 1) * len(records) / world_size
    behind = np.searchsorted(edges, wanted).clip(max=len(edges) - 1)
    before = (behind - 1).clip(min=0)
    nearer = np.where(wanted - edges[before] <= edges[behind] - wanted, edges[before], edges[behind])
    return nearer.tolist()


def train_loader(
    dataset: TrainDataset,
    start_step: int = 0,
    num_workers: int = 0,
    pin_memory: bool = False,
    timeout_s: float = TIMEOUT_S,
) -> Batches[Batch]:
    """The run's micro-batches from optimizer step ``start_step`` on, in order, whatever the number of workers."""
    items = range(start_step * dataset.layout.grad_accum_steps, len(dataset))
    return Batches(dataset, items, num_workers, pin_memory, timeout_s)


def predict_loader(
    dataset: PredictDataset, num_workers: int = 0, pin_memory: bool = False, first: int = 0
) -> Batches[PredictionBatch]:
    """This rank's examples from batch ``first`` on, in the manifest's order; over all ranks each example once."""
    return Batches(dataset, range(first, len(dataset)), num_workers, pin_memory)
