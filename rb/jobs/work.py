"""Cells of a plan, predicted and scored by this process: one model in memory at a time, one process of each Java program for all sets.

What is there is not made again. A cell that cannot be made is noted with its cause and the others go on; only a disk that takes no more ends the job.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from rb.core import dist
from rb.core.files import CannotWriteError
from rb.core.locks import FileLock
from rb.core.output import note
from rb.core.tasks import CAPTION, TASKS
from rb.core.urls import location
from rb.data.index import ManifestReader
from rb.evaluation.scoring import score_files
from rb.evaluation.spice import default_cache
from rb.evaluation.task_scores import score_task
from rb.inference.load import Loaded, build_trained, load_base, read_trained
from rb.inference.predicting import CROPS as CUT_OUT
from rb.inference.predicting import RELEASED_DECODING, WHOLE, Job, decoding_of, predict
from rb.inference.predicting import SHUFFLED as OTHER_BOXES
from rb.inference.ranking import Ranking, read_classes
from rb.jobs.plan import CROPS, RELEASED, SHUFFLED, Cell, Model, Plan
from rb.jobs.results import Record, Results, model_key, predictions_key

VIEWS = {CROPS: CUT_OUT, SHUFFLED: OTHER_BOXES}  # the others see the whole input
FAULTS = (
    ValueError,
    OSError,
    RuntimeError,
)  # of one cell: what a user can cause, and what torch raises, such as a full GPU


class Worker:
    """Makes cells. Its models follow each other in memory."""

    def __init__(self, plan: Plan, results: Results, mlflow: bool) -> None:
        self.plan, self.results, self.mlflow = plan, results, mlflow
        self._loaded: tuple[str, Loaded] | None = None
        self._started = time.monotonic()

    def work(self, cells: Sequence[Cell]) -> list[Cell]:
        """Make all that is missing of these cells; those that failed."""
        for name in dict.fromkeys(cell.model for cell in cells):
            self._predict_all(name, [cell for cell in cells if cell.model == name])
        self._score(
            [cell for cell in cells if not self.results.record(cell).cause and not self.results.is_scored(cell)]
        )
        return [cell for cell in cells if not self.results.is_scored(cell)]

    def _predict_all(self, name: str, cells: Sequence[Cell]) -> None:
        """The predictions of one model's cells."""
        try:
            key = model_key(self.plan.models[name])
        except CannotWriteError:
            raise
        except FAULTS as error:
            self._failed(cells, error)
            return
        for cell in cells:
            try:
                self._predict(cell, key)
            except CannotWriteError:
                raise
            except FAULTS as error:
                self._failed([cell], error)

    def _predict(self, cell: Cell, model: str) -> None:
        key = predictions_key(self.plan, cell, model)
        # Another process may work in the same folder: the job array's, or one that outlived its parent for a moment.
        with FileLock(self.results.lock(cell)):
            if self.results.is_predicted(cell, key):
                if self.results.record(cell).cause:
                    self.results.note(cell, Record(key))
                return
            started, out = time.monotonic(), self.results.predictions(cell)
            out.parent.mkdir(parents=True, exist_ok=True)
            count = predict(self._job(cell), self._generating(cell, self._model(cell.model, model)), out)
            self.results.note(cell, Record(key))
        self._say(
            f"{cell.name}: {count:,} {TASKS[self.plan.tasks[cell.task].task].makes}, {time.monotonic() - started:.0f} s"
        )

    def _job(self, cell: Cell) -> Job:
        task, plan = self.plan.tasks[cell.task], self.plan
        return Job(
            ManifestReader(location(task.data)),
            task.modality,
            VIEWS.get(cell.variant, WHOLE),
            limit=task.limit,
            batch_size=plan.batch_size,
            num_workers=plan.workers,
            task=task.task,
            ranking=Ranking(read_classes(Path(task.classes)) if task.classes else (), task.templates, task.top_k),
        )

    def _generating(self, cell: Cell, loaded: Loaded) -> Loaded:
        own = decoding_of(TASKS[self.plan.tasks[cell.task].task], loaded)
        if self.plan.tasks[cell.task].decoding == RELEASED:
            own = RELEASED_DECODING[loaded.text.llm_kind]
        wanted = self.plan.generation(cell.task, own)
        return loaded if wanted == loaded.generation else loaded.generating(wanted)

    def _model(self, name: str, key: str) -> Loaded:
        """The model in memory, or this one in its place."""
        if self._loaded is None or self._loaded[0] != key:
            started, former = time.monotonic(), self._loaded[1] if self._loaded else None
            self._loaded = None
            loaded = load(self.plan.models[name], former)
            self._loaded = key, loaded
            again = former is not None and former.built is loaded.built
            self._say(
                f"{name}: {'its trained parameters put in' if again else 'loaded'}, {time.monotonic() - started:.0f} s"
            )
        return self._loaded[1]

    def _score(self, cells: Sequence[Cell]) -> None:
        """Score all sets together; where that fails, each for itself, so that one file's fault is that cell's alone."""
        if not cells:
            return
        started = time.monotonic()
        try:
            self._score_files(cells)
        except CannotWriteError:
            raise
        except FAULTS as error:
            if len(cells) == 1:
                self._failed(cells, error)
                return
            for cell in cells:
                self._score([cell])
            return
        self._say(f"{len(cells)} sets scored, {time.monotonic() - started:.0f} s")

    def _score_files(self, cells: Sequence[Cell]) -> None:
        of_task = {cell: self.plan.tasks[cell.task].task for cell in cells}
        captions = [cell for cell in cells if of_task[cell] == CAPTION]
        if captions:
            score_files(
                [self.results.predictions(cell) for cell in captions],
                [self.results.metrics(cell) for cell in captions],
                use_mlflow=self.mlflow,
                spice_cache=default_cache(),
                metrics=self.plan.metrics,
            )
        for cell, task in of_task.items():
            if task != CAPTION:
                score_task(task, self.results.predictions(cell), self.results.metrics(cell), self.mlflow)
        for cell in cells:
            self.results.note(cell, replace(self.results.record(cell), scored=self.results.score_key(), cause=""))

    def _failed(self, cells: Iterable[Cell], error: Exception) -> None:
        cause = " ".join(str(error).split()) or type(error).__name__
        for cell in cells:
            self.results.note(cell, replace(self.results.record(cell), scored="", cause=cause))
            self._say(f"{cell.name}: failed: {cause}")

    def _say(self, text: str) -> None:
        note(f"== [{time.monotonic() - self._started:5.0f} s] {text}")


def load(model: Model, former: Loaded | None = None) -> Loaded:
    """A model of a plan.

    ``former`` is the model that was used before it and is not needed any more. Where both are trained and have the same frozen part, only the trained
    parameters are replaced, and nothing is built.
    """
    if model.base is not None:
        return load_base(model.base, dist.device(), model.settings)
    assert model.checkpoint is not None, "checked when the plan was read"
    trained = read_trained(Path(model.checkpoint), model.foundation, model.settings)
    usable = former if former is not None and former.trained is not None else None
    return build_trained(trained, dist.device(), held=usable)
