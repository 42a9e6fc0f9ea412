"""A plan of evaluations: a YAML file that lists models, tasks, and for each task the variants it is asked of. Runs nothing.

A cell is one model with one task and one variant. Variants ``ours`` and ``shuffled`` are of models with a checkpoint, ``base`` and ``crops`` of
models that are the foundation of a run file. docs/formats.md describes the file; ``${VAR:-default}`` in its texts is replaced as in run files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rb.core.config import DecodeConfig, check_templates
from rb.core.files import slug
from rb.core.install import EVALUATIONS, find_file, find_shipped
from rb.core.metrics import METRICS
from rb.core.modality import modality_spec
from rb.core.run_file import from_tree
from rb.core.run_yaml import read_yaml_file
from rb.core.tasks import CAPTION, RETRIEVAL, TASKS, ZEROSHOT
from rb.evaluation.paper import paper_models

OURS, BASE, CROPS, SHUFFLED = "ours", "base", "crops", "shuffled"
VARIANTS = (OURS, BASE, CROPS, SHUFFLED)
WITH_CHECKPOINT = (OURS, SHUFFLED)
RUN_DECODING, RELEASED = "run", "released"


@dataclass(frozen=True)
class Model:
    """What is scored: a trained model, or the foundation of a run file without training."""

    checkpoint: str | None = None
    """Run folder (its newest), ``checkpoints/best`` or ``checkpoints/step_*`` in it, or an export."""
    base: str | None = None
    """Run file, or the name of one of the project's own: its foundation alone."""
    foundation: str | None = None
    """Folder of the frozen weights; an export needs it."""
    settings: tuple[str, ...] = ()
    """Overrides of its configuration: ``section.key=value``."""
    paper: str | None = None
    """Which model of the paper's Table 1 stands beside it, such as ``OPT-2.7B``."""


@dataclass(frozen=True)
class Task:
    """What a model is asked, and of which data."""

    data: str
    """Manifest of the examples, or its folder; a path or a URL."""
    modality: str
    """How the examples are read."""
    task: str = CAPTION
    """``caption``, ``vqa``, ``zeroshot`` or ``retrieval``."""
    variants: tuple[str, ...] = (OURS,)
    """Out of ``ours``, ``base``, ``crops`` and ``shuffled``."""
    limit: int | None = None
    """Only the first so many examples; of questions the first so many sources, with all their questions."""
    decoding: str = RUN_DECODING
    """``run``: as the run says; ``released``: as the released code does."""
    classes: str | None = None
    """zeroshot: file of the names of all classes, one a line; none: those of the set."""
    templates: tuple[str, ...] = ()
    """zeroshot: prompts of a class, with {} for its name; none: those of the run."""
    top_k: int = 128
    """retrieval: candidates that ITM ranks again; 0: none."""
    paper: str | None = None
    """Data set of the paper's Table 1 that stands beside it, such as ``RefCOCO``."""
    expect: dict[str, dict[str, float]] = field(default_factory=dict)
    """Variant to the scores (times 100) that are expected; without it the paper's are."""
    tolerance: dict[str, float] = field(default_factory=dict)
    """How far from the expected score (times 100) a reproduced one may be, for all examples."""
    spread: dict[str, float] = field(default_factory=dict)
    """Standard deviation of a score (times 100) over examples: with a limit the tolerance grows by three standard errors."""
    examples: int | None = None
    """How many examples the whole set has."""
    split: str | None = None
    """The split that the data must be of."""
    recorded: dict[str, str] = field(default_factory=dict)
    """Variant to a predictions file of before: the first ids with another text are named."""


@dataclass(frozen=True)
class _PlanFile:
    """The file's fields, but for the ``decode`` of its tasks: settings of generation that differ from the run's."""

    models: dict[str, Model] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    metrics: tuple[str, ...] = tuple(METRICS)
    """Of captions, out of those of ``rb score``."""
    batch_size: int = 16
    """Examples of one forward pass."""
    workers: int = 0
    """Loader processes."""


@dataclass(frozen=True)
class Cell:
    """One model with one task and one variant."""

    model: str
    task: str
    variant: str

    @property
    def name(self) -> str:
        """Of its files."""
        return "-".join(map(slug, (self.model, self.task, self.variant)))


@dataclass(frozen=True)
class Plan:
    """A checked plan.

    Attributes:
        name: of its file, without the ending.
        decode: task to the settings of generation that it changes.
    """

    path: Path
    name: str
    models: dict[str, Model]
    tasks: dict[str, Task]
    decode: dict[str, dict[str, Any]]
    metrics: tuple[str, ...]
    batch_size: int
    workers: int

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All cells, model after model; their places are the numbers of ``--list`` and of a job array."""
        return tuple(
            Cell(model, task, variant)
            for model, entry in self.models.items()
            for task, asked in self.tasks.items()
            for variant in VARIANTS
            if variant in asked.variants and (variant in WITH_CHECKPOINT) == (entry.checkpoint is not None)
        )

    def chosen(self, only: Sequence[str]) -> tuple[Cell, ...]:
        """The cells of these names or numbers, in the plan's order, or all where none is given; ``ValueError`` for one that is not there."""
        cells = self.cells
        known = {cell.name: cell for cell in cells} | {str(number): cell for number, cell in enumerate(cells)}
        unknown = [name for name in only if name not in known]
        if unknown:
            raise ValueError(
                f"{self.path}: has no cell {unknown[0]!r}; `rb evaluate --plan {self.path} --list` shows its {len(cells)}"
            )
        wanted = {known[name] for name in only}
        return tuple(cell for cell in cells if not only or cell in wanted)

    def generation(self, task: str, own: DecodeConfig) -> DecodeConfig:
        """How captions of a task are generated, where the model's own way is ``own``."""
        return from_tree(DecodeConfig, asdict(own) | self.decode.get(task, {}), f"tasks.{task}.decode")


def find_plan(path: Path) -> Path:
    """The plan file that a path or the name of one of the project's own plans means; ``path`` itself if there is none."""
    return find_file(path) or find_shipped(str(path), EVALUATIONS) or path


def read_plan(path: Path) -> Plan:
    """The plan in a file.

    Raises:
        ValueError: the file is missing or no plan; a model, task or variant that cannot be.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no plan there; the project's own are in {EVALUATIONS}/")
    try:
        tree = read_yaml_file(path)
        decode = _decode(tree)
        raw = from_tree(_PlanFile, tree)
        _check(raw)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    return Plan(path, path.stem, raw.models, raw.tasks, decode, raw.metrics, raw.batch_size, raw.workers)


def _decode(tree: Any) -> dict[str, dict[str, Any]]:
    """``decode`` of each task, taken out of the tree and checked: fields of ``DecodeConfig``, of which the others stay the run's."""
    tasks = tree.get("tasks") if isinstance(tree, dict) else None
    found = {}
    for name, task in (tasks if isinstance(tasks, dict) else {}).items():
        if isinstance(task, dict) and "decode" in task:
            own = task.pop("decode")
            from_tree(DecodeConfig, own, f"tasks.{name}.decode")
            found[str(name)] = own
    return found


def _check(raw: _PlanFile) -> None:
    if not raw.tasks:
        raise ValueError("tasks: must name at least one; see docs/formats.md")
    for name, model in raw.models.items():
        if (model.checkpoint is None) == (model.base is None):
            raise ValueError(f"models.{name}: give either checkpoint, a trained model, or base, a run file")
        if model.base is not None and model.foundation is not None:
            raise ValueError(
                f"models.{name}.foundation: goes with checkpoint; give settings: [model.foundation.blip2=FOLDER]"
            )
        if model.paper is not None and model.paper not in paper_models():
            raise ValueError(
                f"models.{name}.paper: {model.paper} is no model of the paper; give one of {', '.join(paper_models())}"
            )
    for name, task in raw.tasks.items():
        _check_task(f"tasks.{name}", task)
    unknown = [metric for metric in raw.metrics if metric not in METRICS]
    if unknown:
        raise ValueError(f"metrics: {unknown[0]} is unknown; choose from {', '.join(METRICS)}")
    if raw.batch_size < 1 or raw.workers < 0:
        raise ValueError(f"batch_size {raw.batch_size}, workers {raw.workers}: must be at least 1 and 0")
    for kind, names in (("models", raw.models), ("tasks", raw.tasks)):
        slugs = [slug(name) for name in names]
        if len(set(slugs)) < len(slugs) or "" in slugs:
            raise ValueError(f"{kind}: two names give the same file name, or none ({', '.join(slugs)}); rename one")


def _check_task(where: str, task: Task) -> None:
    spec = modality_spec(task.modality)
    unknown = [variant for variant in task.variants if variant not in VARIANTS]
    if unknown or not task.variants:
        raise ValueError(f"{where}.variants: {', '.join(unknown) or 'none'}; choose from {', '.join(VARIANTS)}")
    if SHUFFLED in task.variants and not spec.regional:
        raise ValueError(f"{where}.variants: {task.modality} has no boxes to shuffle; leave {SHUFFLED} out")
    if task.decoding not in (RUN_DECODING, RELEASED):
        raise ValueError(f"{where}.decoding: {task.decoding}; choose {RUN_DECODING} or {RELEASED}")
    if task.task not in TASKS:
        raise ValueError(f"{where}.task: {task.task}; choose from {', '.join(TASKS)}")
    if task.task != CAPTION and task.decoding == RELEASED:
        raise ValueError(f"{where}.decoding: {RELEASED} is of captions, not of {task.task}; leave it out")
    untrained = [variant for variant in task.variants if variant not in WITH_CHECKPOINT]
    if TASKS[task.task].ranks and untrained:
        raise ValueError(f"{where}.variants: {task.task} needs trained heads; leave {', '.join(untrained)} out")
    if (task.classes or task.templates) and task.task != ZEROSHOT:
        raise ValueError(
            f"{where}: classes and templates go with task: {ZEROSHOT}, not with {task.task}; leave them out"
        )
    check_templates(f"{where}.templates", task.templates)
    if task.top_k < 0 or (task.top_k != Task.top_k and task.task != RETRIEVAL):
        raise ValueError(f"{where}.top_k: {task.top_k} goes with task: {RETRIEVAL}, and is at least 0; leave it out")
    if task.limit is not None and task.limit < 1:
        raise ValueError(f"{where}.limit: {task.limit} must be at least 1")
