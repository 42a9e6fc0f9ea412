"""A plan of ablations: a YAML file that lists variants of one run file, the seeds, and what each trained model is asked.

Reads and checks the file, and says what every training's configuration is. Runs nothing (rb/ablate/runs.py). docs/formats.md describes
the file; ``${VAR:-default}`` in its texts is replaced as in run files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rb.core.config import RunConfig
from rb.core.files import slug
from rb.core.install import ABLATIONS, find_file, find_shipped
from rb.core.modality import modality_spec
from rb.core.run_file import from_tree, load_run
from rb.core.run_paths import find_run_file
from rb.core.run_yaml import Word, read_yaml_file

STAGES = "stages"


@dataclass(frozen=True)
class Question:
    """What a trained model is asked in one modality."""

    data: str
    """Manifest of held-out examples, or its folder."""
    limit: int | None = None
    """Only the first so many."""
    truth: str | None = None
    """``truth.json`` of the toy scenes, to judge the captions by."""
    shuffle_boxes: bool = False
    """Ask again with boxes of other objects, as a control."""


@dataclass(frozen=True)
class _PlanFile:
    """The file's fields, but for ``variants``.

    That maps a name to overrides of the run file, or to ``stages``: lists of overrides for trainings that follow each other. The first
    variant is what the others are compared with.
    """

    run: str
    """Run file that all variants start from."""
    evaluate: dict[str, Question] = field(default_factory=dict)
    """Modality to question."""
    overrides: tuple[str, ...] = ()
    """Of every training, before the variant's own."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One training each."""
    decode: tuple[str, ...] = ()
    """Overrides of every prediction, such as ``decode.num_beams=1``."""
    reach: str | None = None
    """A validation score, such as ``CIDEr``: the table also says after how many steps each variant has the first one's last value."""


@dataclass(frozen=True)
class Variant:
    """One way to train: overrides of each of its trainings, which follow each other; most have one."""

    name: str
    stages: tuple[tuple[str, ...], ...]

    @property
    def slug(self) -> str:
        """The name as a part of a folder's name."""
        return slug(self.name)


@dataclass(frozen=True)
class Plan:
    """A checked plan; ``variants[0]`` is what the others are compared with."""

    path: Path
    run: Path
    variants: tuple[Variant, ...]
    questions: dict[str, Question]
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    decode: tuple[str, ...]
    reach: str | None = None

    def chosen(self, only: Sequence[str]) -> tuple[Variant, ...]:
        """The first variant and those named, or all where none is; ``ValueError`` for an unknown name."""
        unknown = sorted(set(only) - {variant.name for variant in self.variants})
        if unknown:
            names = ", ".join(repr(variant.name) for variant in self.variants)
            raise ValueError(f"{self.path}: has no variant {unknown[0]!r}; it has {names}")
        return tuple(v for i, v in enumerate(self.variants) if not only or i == 0 or v.name in only)

    def training(self, variant: Variant, seed: int, stage: int, out: Path) -> tuple[list[str], RunConfig]:
        """The overrides of the run file for one training, and the configuration that they give."""
        own = [f"seed={seed}", f"name={self.training_name(variant, seed, stage)}", f"output_dir={out}/runs"]
        if stage:
            own.append(f"init_from={out}/runs/{self.training_name(variant, seed, stage - 1)}")
        overrides = [*self.overrides, *variant.stages[stage], *own]
        return overrides, load_run(self.run, overrides)

    @staticmethod
    def training_name(variant: Variant, seed: int, stage: int) -> str:
        """Name of a training and of its folder; the last stage carries the plain name."""
        end = "" if stage == len(variant.stages) - 1 else f"-stage{stage + 1}"
        return f"{variant.slug}-seed{seed}{end}"


def read_plan(path: Path) -> Plan:
    """The plan in a file.

    Raises:
        ValueError: the file is missing or no plan; an unknown modality; a variant's overrides do not fit the run file, or leave
            ``train.max_steps`` open.
    """
    raw, variants = _read(path)
    plan = Plan(path, find_run_file(raw.run), variants, raw.evaluate, raw.overrides, raw.seeds, raw.decode, raw.reach)
    for variant in plan.variants:
        for stage in range(len(variant.stages)):
            _check(plan, variant, stage)
    return plan


def find_plan(path: Path) -> Path:
    """The plan file that a path or the name of one of the project's own plans means; ``path`` itself if there is none."""
    return find_file(path) or find_shipped(str(path), ABLATIONS) or path


def _read(path: Path) -> tuple[_PlanFile, tuple[Variant, ...]]:
    """The file's fields, each for itself as it should be."""
    if not path.is_file():
        raise ValueError(f"{path}: no plan there; the project's own are in launch/ablations/")
    try:
        tree = read_yaml_file(path)
        listed = tree.pop("variants", None) if isinstance(tree, dict) else None
        if not isinstance(listed, dict) or not listed:
            raise ValueError("variants: must be a mapping of names to overrides")
        raw = from_tree(_PlanFile, tree)
        variants = tuple(Variant(str(name), _stages(name, entry)) for name, entry in listed.items())
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    slugs = [variant.slug for variant in variants]
    if len(set(slugs)) < len(slugs) or "" in slugs:
        raise ValueError(f"{path}: variants: two names give the same folder name, or none ({', '.join(slugs)})")
    if not raw.evaluate or not raw.seeds:
        raise ValueError(f"{path}: evaluate: must name at least one modality, and seeds one seed; see docs/formats.md")
    for modality, question in raw.evaluate.items():
        if question.shuffle_boxes and not modality_spec(modality).regional:
            raise ValueError(f"{path}: evaluate.{modality}.shuffle_boxes: this modality has no boxes; leave it out")
    return raw, variants


def _check(plan: Plan, variant: Variant, stage: int) -> None:
    """Whether a training's configuration is valid and can answer the questions."""
    try:
        config = plan.training(variant, plan.seeds[0], stage, Path("out"))[1]
    except ValueError as error:
        raise ValueError(f"{plan.path}: {variant.name}: {error}") from error
    lacking = [modality for modality in plan.questions if modality not in config.model.train_modalities]
    if lacking:
        raise ValueError(f"{plan.path}: {variant.name}: does not train {lacking[0]}, which evaluate asks for")
    if config.train.max_steps is None:
        raise ValueError(f"{plan.path}: {variant.name}: give train.max_steps, so that all variants are as long")
    if plan.reach is not None and stage == len(variant.stages) - 1:
        unasked = [modality for modality in plan.questions if modality not in config.data.val]
        if not config.validation.every or unasked:
            raise ValueError(
                f"{plan.path}: {variant.name}: reach needs validation.every and held-out manifests in data.val for "
                f"{', '.join(unasked or plan.questions)}; add them to overrides, or leave reach out"
            )


def _stages(name: str, entry: Any) -> tuple[tuple[str, ...], ...]:
    entry = [] if isinstance(entry, Word) and entry.null else entry
    stages = entry.get(STAGES) if isinstance(entry, dict) and set(entry) == {STAGES} else [entry or []]
    if (
        not isinstance(stages, list)
        or not stages
        or not all(isinstance(stage, list) and all(isinstance(text, str) for text in stage) for stage in stages)
    ):
        raise ValueError(f"variants.{name}: must be a list of section.key=value, or stages: a list of such lists")
    return tuple(tuple(stage) for stage in stages)
