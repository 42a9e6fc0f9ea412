"""Validation while training: held-out losses, and scores of generated captions, per modality; and which step was the best so far.

Nothing about training changes by it: it draws from no generator that training uses, leaves no gradient, and puts the active adapter
back. All ranks take part: losses are of whole contrastive batches, spread over ranks as in training, and captions are shared out. What is
shown is the same at every validation, on any number of ranks and for every seed. The loop decides when, and writes checkpoints; `validation_page.py` shows a few of the captions.

A wish to stop is looked at before every batch: at full size a validation takes minutes, and a machine that is taken away gives seconds. It is then
given up and owed: the checkpoint of its step says so, and the run makes it first when it goes on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rb.core import dist, heartbeat, progress
from rb.core.batch import Batch
from rb.core.config import DataConfig, RunConfig
from rb.core.metric_names import TOTAL, VAL, loss_name, parse_name, shown_values, value_name
from rb.core.metrics import HIGHER, METRICS, while_training
from rb.core.schedules import Turn
from rb.core.step_layout import StepLayout
from rb.data.formats import require_media
from rb.data.loading import Batches
from rb.data.order import Arrangement
from rb.data.pipeline import PredictDataset, TrainDataset, TrainingData, open_training_data, train_loader
from rb.evaluation.caption_metrics import remark_on
from rb.evaluation.simple_cider import simple_scores
from rb.inference.generate import caption_batches
from rb.inference.load import Loaded, example_transform
from rb.model.weights.build import Built
from rb.pages.validation_page import Shown, choose_examples, write_samples_page

OWED = "validation_owed"  # in a checkpoint's meta file
SEED = 0  # of validation's own draws (which captions, which points, which negatives): the same in runs of any seed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Best:
    """The best score so far: its metric's name, its value and the step."""

    name: str
    value: float
    step: int

    def beaten_by(self, value: float) -> bool:
        """Whether a later value is better: losses fall, of other scores the table of metrics knows."""
        parts = parse_name(self.name)
        assert parts is not None, self.name
        rises = parts.term is None and METRICS[parts.value].better == HIGHER
        return value > self.value if rises else value < self.value


def open_validation_data(data: DataConfig) -> dict[str, TrainingData]:
    """Open and verify the manifests of ``data.val``; ``ValueError`` names a missing, altered or unfit one.

    They are read in the full order, whatever ``data.order`` says, since losses are taken of the first batches of it.
    """
    opened = open_training_data(data.val, SEED, Arrangement(data.group_by_source))
    for reader in (reader for one in opened.values() for reader in one.readers):
        require_media(reader.manifest, reader.path)  # captions are made of whole sources
    return opened


class Validation:
    """The validation of one run, in memory; what it must remember over a resume is ``best``.

    Args:
        config: of the run.
        data: from ``open_validation_data``; unused, and may be empty, where ``validation.every`` is 0.
        built: the model that trains, and what was read with it.
        recorded: what ``record`` gave when the checkpoint was written that this run continues from.

    Attributes:
        owed: the validation of the newest step was given up for a stop.
    """

    def __init__(
        self, config: RunConfig, data: dict[str, TrainingData], built: Built, recorded: Mapping[str, Any] | None = None
    ) -> None:
        self.settings, self._config, self._data, self._model = config.validation, config, data, built.model
        recorded = recorded or {}
        found = Best(**recorded["best"]) if recorded.get("best") else None
        self.owed = bool(recorded.get(OWED)) and config.validation.every > 0
        self.best = found if found and found.name == self.settings.keep_best else None
        # By modality, on rank 0: which examples (manifest, number) were captioned, predictions by (manifest, id), what is shown of them.
        self._captioned: dict[str, list[tuple[int, int]]] = {}
        self._predictions: dict[str, dict[tuple[int, str], str]] = {}
        self._shown: dict[str, list[Shown]] = {}
        if self.settings.every:
            self._text = built.text
            self._transform = replace(example_transform(built, SEED), raw_captions=config.data.raw_captions)
            captioned_as = example_transform(built, SEED, config.decode.image_size)
            self._loaded = Loaded(built, captioned_as, config.decode, SEED)

    def due(self, done: int, last: bool) -> bool:
        """Whether to validate after so many steps."""
        return self.settings.every > 0 and (last or done % self.settings.every == 0)

    def record(self) -> dict[str, Any]:
        """The best so far, and whether a validation is owed, for a checkpoint's meta file."""
        return {"best": asdict(self.best) if self.best else None, OWED: self.owed}

    def inputs(self) -> list[tuple[str, str, str]]:
        """(name, digest, source) of every manifest."""
        readers = [reader for data in self._data.values() for reader in data.readers]
        return [(reader.manifest.name, reader.digest, str(reader.path)) for reader in readers]

    def write_samples(self, run_dir: Path, done: int, scores: dict[str, float]) -> Path:
        """Write a few captions of the newest validation as a page into the run folder, and return its path. Rank 0 only."""
        for modality, captioned in self._captioned.items():
            if modality not in self._shown:
                self._shown[modality] = choose_examples(modality, self._data[modality].readers, captioned)
        samples = {
            m: [(one, self._predictions[m][one.manifest, one.id]) for one in shown] for m, shown in self._shown.items()
        }
        return write_samples_page(run_dir, done, samples, scores)

    def run(self, done: int, to_stop: Callable[[], bool] = lambda: False) -> tuple[dict[str, float], bool] | None:
        """Validate after ``done`` steps. Collective; the same result on all ranks.

        Args:
            to_stop: whether to give it up; collective.

        Returns:
            None where it was given up. Else:
            Values by metric name (``val/image_region/loss_itc``, ``val/image_region/CIDEr``), and whether this step is the best so far by
            ``keep_best``. A value that is not finite is never the best.
        """
        values: dict[str, float] = {}
        self.owed = True
        with self._untouched(), heartbeat.during(heartbeat.VALIDATION):
            for modality in self._data:
                for part in (self._losses, self._caption_scores):
                    found = part(modality, to_stop)
                    if found is None:
                        return None
                    values |= found
        self.owed = False
        name = self.settings.keep_best
        improved = False
        if (
            name is not None
            and math.isfinite(values[name])
            and (self.best is None or self.best.beaten_by(values[name]))
        ):
            self.best, improved = Best(name, values[name], done), True
        log.info("step %d: validation %s%s", done, shown_values(values), f" (best {name} so far)" if improved else "")
        return values, improved

    @contextmanager
    def _untouched(self) -> Iterator[None]:
        """No gradients; generators and the active adapter are afterwards what they were (data loaders draw from torch's)."""
        active = self._model.adapters.active
        devices = [self._model.device] if self._model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
        self._model.adapters.activate(active)

    def _losses(self, modality: str, to_stop: Callable[[], bool]) -> dict[str, float] | None:
        """Mean of every loss term over the first contrastive batches of the held-out stream, each taken as a training step of its own."""
        train, terms = self._config.train, self._model.config.terms_of(modality)
        layout = train.layout(dist.world_size()).of_one_pool()
        count = min(self.settings.num_loss_batches, max(1, len(self._data[modality].stream) // layout.pool_size))
        if not count:
            return {}
        # A group of ranks takes every so-manieth contrastive batch; no collective within them is of all ranks.
        group = dist.group(layout.world_size)
        num_groups = dist.world_size() // group.size
        own = range(group.number, count, num_groups)
        batches = iter(self._loss_batches(modality, own, layout))
        sums = {term: torch.zeros((), device=self._model.device) for term in (*terms, TOTAL)}
        rounds = range(0, count, num_groups)  # the same on all ranks, who look together whether to stop
        bar = progress.bar(rounds, desc=f"{modality} validation", unit="batch", disable=not dist.is_main(), leave=False)
        for first in bar:
            heartbeat.beat()
            if to_stop():
                return None
            if first + group.number not in own:
                continue
            taken = [next(batches).to(self._model.device) for _ in range(layout.grad_accum_steps)]
            for batch, share in self._model.shares(taken, layout):
                for term, value in self._model(batch, share).with_total().items():
                    sums[term] = sums[term] + value
        fetched = dist.all_reduce_sum(torch.stack([value.double() for value in sums.values()])).tolist()
        parts = count * layout.num_parts
        return {loss_name(VAL, modality, term): total / parts for term, total in zip(sums, fetched, strict=True)}

    def _loss_batches(self, modality: str, pools: Sequence[int], layout: StepLayout) -> Batches[Batch]:
        """This rank's micro-batches of some contrastive batches of the held-out stream: no sample twice, unless one is too large."""
        dataset = TrainDataset(
            self._data,
            [Turn(modality, number, 0) for number in pools].__getitem__,
            self._transform,
            self._text,
            total_steps=len(pools),
            layout=layout,
            rank=dist.group(layout.world_size).rank,
        )
        num_workers, pinned = self._config.data.num_workers, self._model.device.type == "cuda"
        return train_loader(dataset, 0, num_workers, pinned, self._config.train.loader_timeout_s)

    def _caption_scores(self, modality: str, to_stop: Callable[[], bool]) -> dict[str, float] | None:
        """Scores of the captions of ``num_examples`` examples, shared out over the manifests by their size and over the ranks."""
        readers = self._data[modality].readers
        total = sum(reader.num_examples for reader in readers)
        wanted = min(self.settings.num_examples, total)
        if wanted == 0:
            return {}
        rows, before = [], 0
        captioned: list[tuple[int, int]] = []
        for number, reader in enumerate(readers):
            after = before + reader.num_examples
            count = wanted * after // total - wanted * before // total
            chosen = [i * reader.num_examples // count for i in range(count)]
            captioned += [(number, example) for example in chosen]
            dataset = PredictDataset(
                reader,
                modality,
                self._loaded.transform,
                batch_size=self._config.train.layout(dist.world_size()).micro_batch_size,
                rank=dist.rank(),
                world_size=dist.world_size(),
                limit=chosen,
            )
            made = caption_batches(self._loaded, dataset, modality, self._config.data.num_workers, bar_stays=False)
            # As many rounds as the rank with the most batches has, on all ranks, who look together whether to stop.
            for _ in range(dataset.rounds):
                if to_stop():
                    return None
                # The same region may stand in two manifests (RefCOCO and RefCOCO+): both count.
                rows += [(number, row.id, row.prediction, row.references) for row in next(made, [])]
            before = after
        gathered = dist.gather_objects(rows)
        scores: dict[str, float] = {}
        if gathered is not None:
            everything = sorted(
                row for rank_rows in gathered for row in rank_rows
            )  # an order without ranks: the same last bit
            scores = simple_scores([row[2] for row in everything], [row[3] for row in everything], while_training())
            if scores.get("CIDEr") == 0 and modality not in self._captioned:  # once
                remark = remark_on([row[3] for row in everything])
                if remark:
                    log.warning("validation of %s, %d examples: %s", modality, len(everything), remark)
            self._captioned[modality] = captioned
            self._predictions[modality] = {
                (manifest, sample_id): caption for manifest, sample_id, caption, _ in everything
            }
        scores = dist.broadcast_object(scores)
        return {value_name(VAL, name, modality): value for name, value in scores.items()}
