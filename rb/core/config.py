"""The configuration of a run: frozen dataclasses that check themselves; ``model`` is in rb/core/model_config.py, ``optim`` in optim_config.py.

``rb/core/run_file.py`` reads them from YAML. A sentence under each field says what it means; defaults are this project's choices (paper
first, then the released code; the table in docs/architecture.md has all columns). Every check names field, value and what would be right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rb.core.metric_names import TOTAL, VAL, loss_name, value_name
from rb.core.metrics import while_training
from rb.core.modality import in_table_order, modality_spec
from rb.core.model_config import (
    CLOUD_BOX_DIMS,
    TEXT_BRANCHES,
    FoundationConfig,
    InitConfig,
    LoraConfig,
    ModelConfig,
    at_least,
    one_of,
)
from rb.core.optim_config import Extension, OptimConfig
from rb.core.schedules import SCHEDULES
from rb.core.step_layout import StepLayout, allowed_layouts
from rb.core.urls import location

MIRRORS = ("never", "safe", "swap", "always")  # rules of ``data.mirror``; rb/data/mirrors.py says what they do
DROPPED_POINTS = ("first", "kept")  # ``data.dropped_points``
ORDERS = ("full", "blocks")  # ``data.order``
AUTO: Literal["auto"] = "auto"  # ``train.micro_batch_size``

# The classes of ``model`` and ``optim`` are part of this module for everyone else.
__all__ = (
    "CLOUD_BOX_DIMS",
    "TEXT_BRANCHES",
    "DataConfig",
    "DataSource",
    "DecodeConfig",
    "Extension",
    "FoundationConfig",
    "InitConfig",
    "LimitsConfig",
    "LoraConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "TrackingConfig",
    "TrainConfig",
    "ValidationConfig",
)


@dataclass(frozen=True)
class DataSource:
    """One manifest of one modality."""

    manifest: str
    """Path or URL (``s3://``, ``gs://``, ``hf://``, ``https://``, ``http://``) of a ``manifest.json`` or its folder."""
    repeat: int = 1
    """How often it is shown per epoch (the released code shows ScanRefer twice)."""
    first: int | None = None
    """Only its first so many samples: an epoch of a small share of the data, as ablations need. Validation losses use it too."""

    def __post_init__(self) -> None:
        try:
            location(self.manifest)
        except ValueError as error:
            raise ValueError(f"data.*.manifest: {error}") from None
        at_least("data.*.repeat", self.repeat, 1)
        at_least("data.*.first", 1 if self.first is None else self.first, 1)


@dataclass(frozen=True)
class DataConfig:
    """What is trained on, and how it is read."""

    train: dict[str, tuple[DataSource, ...]] = field(default_factory=dict)
    """Modality -> manifests. Every listed modality must be in ``model.train_modalities``."""
    val: dict[str, tuple[DataSource, ...]] = field(default_factory=dict)
    """Modality -> held-out manifests for the ``validation`` section, likewise."""
    augment: bool = True
    """Augment point clouds (objects: dropout, scale, shift, turn; scenes: 5 degrees about z), and mirror what ``mirror`` lists."""
    mirror: dict[str, str] = field(default_factory=dict)
    """Modality -> which of its samples are mirrored (images from left to right, clouds along both level axes, each with probability 1/2):
    ``never``, as all that are not listed; ``safe``, where no caption that goes with the sample says left, right or another word that a mirror
    makes false; ``swap``, also where left and right are certain, and exchanged in the caption; ``always``, with captions as they are, which
    makes some false (released code, scenes)."""
    dropped_points: str = "first"
    """What takes the place of the points of objects that the augmentation drops: ``first``, the cloud's first point again and again (released
    code), or ``kept``, points that stay, each as often as the others."""
    raw_captions: tuple[str, ...] = ()
    """Modalities that train on captions as they were written, without BLIP's rule (lower case, no punctuation); the released code does so
    with ScanRefer's."""
    num_workers: int = 4
    """Loader processes per rank; the data and their order do not depend on it."""
    group_by_source: int = 1
    """Up to so many captions of one source (image, cloud) follow each other, so that a batch reads, augments and encodes it once; 1 draws
    every caption by itself. An epoch shows the same captions, and groups are shuffled like captions. Validation groups too."""
    order: str = "full"
    """``full``: an epoch is one shuffle of all; ``blocks``: blocks of consecutive records are shuffled, then what a window of some blocks
    holds, so that a network disk or an object store reads long pieces."""
    block_records: int = 256
    """Records of a block, with ``order: blocks``."""
    window_blocks: int = 64
    """Blocks that are shuffled together, with ``order: blocks``."""

    def __post_init__(self) -> None:
        for part in ("train", "val"):
            listed: dict[str, tuple[DataSource, ...]] = getattr(self, part)
            for name, sources in listed.items():
                modality_spec(name)
                if not sources:
                    raise ValueError(f"data.{part}.{name}: no manifest listed; list one, or remove the modality")
            object.__setattr__(self, part, {name: listed[name] for name in in_table_order(listed)})
        for name, rule in self.mirror.items():
            modality_spec(name)
            one_of(f"data.mirror.{name}", rule, MIRRORS)
        object.__setattr__(self, "mirror", {name: self.mirror[name] for name in in_table_order(self.mirror)})
        one_of("data.dropped_points", self.dropped_points, DROPPED_POINTS)
        object.__setattr__(self, "raw_captions", in_table_order(self.raw_captions))
        at_least("data.num_workers", self.num_workers, 0)
        one_of("data.order", self.order, ORDERS)
        for name in ("group_by_source", "block_records", "window_blocks"):
            at_least(f"data.{name}", getattr(self, name), 1)


@dataclass(frozen=True)
class TrainConfig:
    """The loop: sizes, length, schedule, saving, engine."""

    global_batch_size: int = 128
    """Samples of one optimizer step over all ranks."""
    micro_batch_size: int | Literal["auto"] = AUTO
    """Samples of one forward pass on one rank, or ``auto``: the largest that divides a rank's share of the step and fits into its GPU's memory, on
    a CPU of at most 16. Accumulation is derived: global / (micro * ranks). Losses do not depend on it."""
    contrastive_batch_size: int | None = None
    """Samples that ITC and ITM contrast with each other, on any number of ranks: a multiple of the micro-batch that divides the global
    batch; none is the global batch. Where it is larger than micro-batch * ranks, the Q-Former runs twice."""
    schedule: str = "weighted_round_robin"
    """Which modality a step trains: ``weighted_round_robin``, ``round_robin`` or ``sequential`` (rb/core/schedules.py)."""
    order: tuple[str, ...] = ()
    """Order in which modalities take their turns; those not listed come after, in the order image, image_region, point_cloud,
    point_cloud_region."""
    epochs: int = 30
    """Length of the run; an epoch shows every sample of every modality once."""
    max_steps: int | None = None
    """Stop after this many steps instead (the rate's cosine ends there too)."""
    log_every: int = 10
    """Fetch and journal the metrics every so many steps."""
    checkpoint_every: int = 1000
    """Save every so many steps (and at the end)."""
    keep_checkpoints: int = 2
    """Older ones are deleted."""
    max_bad_steps: int = 10
    """Stop after so many steps in a row with a non-finite loss or gradient (each is skipped on all ranks)."""
    ds_config: str = "ds_configs/zero2.json"
    """DeepSpeed's file; its batch numbers are "auto"."""
    gradient_communication: str = "float32"
    """Type in which ranks add up their gradients: ``float32``, or ``bfloat16``, which halves their bytes and rounds every sum to 8 bits.
    They are kept in float32 either way."""
    activation_checkpointing: bool = False
    """Keep of each layer of the Q-Former and the LLM its input alone, and compute the rest again in the backward pass: for small GPUs. Losses and
    gradients are the same; the backward pass executes their forward pass once more."""
    compile: bool = False
    """Run encoders, Q-Former and LLM as graphs of ``torch.compile``, which is refused with the reason where the device cannot. With
    ``activation_checkpointing`` the encoders alone. Losses stay equal within rounding; the first step of each modality waits for the compiler."""
    timeout_s: float = 600.0
    """How long a rank waits for another in a collective; a third of it for a batch of its loader processes, which then say what is wrong.
    Under `rb train` and `rb launch` a collective waits longer than any of ``limits``, whose supervisor can say which rank is to blame."""
    num_threads: int = 0
    """CPU threads of one rank; 0 leaves torch's choice."""

    def __post_init__(self) -> None:
        one_of("train.schedule", self.schedule, tuple(SCHEDULES))
        one_of("train.gradient_communication", self.gradient_communication, ("float32", "bfloat16"))
        for name in self.order:
            modality_spec(name)
        object.__setattr__(self, "order", tuple(dict.fromkeys(self.order)))
        for name in (
            "global_batch_size",
            "epochs",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
        ):
            at_least(f"train.{name}", getattr(self, name), 1)
        for name in ("micro_batch_size", "contrastive_batch_size", "max_steps"):
            value = getattr(self, name)
            at_least(f"train.{name}", 1 if value in (None, AUTO) else value, 1)
        at_least("train.timeout_s", self.timeout_s, 1)

    def in_order(self, modalities: Iterable[str]) -> list[str]:
        """``modalities`` as they take their turns: those in ``order`` first."""
        given = list(modalities)
        return sorted(given, key=lambda name: self.order.index(name) if name in self.order else len(self.order))

    def layouts(self, world_size: int) -> list[StepLayout]:
        """The divisions of a step over so many ranks that the sizes allow, the largest micro-batch first: one, unless it is ``auto``.

        Raises:
            ValueError: names the sizes that do not divide, and what would.
        """
        pool = self.contrastive_batch_size or self.global_batch_size
        if self.micro_batch_size == AUTO:
            return allowed_layouts(self.global_batch_size, pool, world_size)
        return [StepLayout(self.global_batch_size, self.micro_batch_size, pool, world_size)]

    def layout(self, world_size: int) -> StepLayout:
        """A step on so many ranks, the first of ``layouts``: with ``auto`` the largest that memory may allow (rb/training/micro_batch.py)."""
        return self.layouts(world_size)[0]

    @property
    def loader_timeout_s(self) -> float:
        """How long a rank waits for a batch."""
        return self.timeout_s / 3


@dataclass(frozen=True)
class ValidationConfig:
    """Held-out losses and captions while training; nothing about the training itself changes by it."""

    every: int = 0
    """Validate on ``data.val`` every so many steps, and after the last; 0 is never."""
    num_examples: int = 200
    """Captions per modality, spread evenly over its manifests; 0 is none."""
    num_loss_batches: int = 8
    """Contrastive batches whose losses are averaged, per modality; never more than one pass over its samples."""
    keep_best: str | None = None
    """Score whose best checkpoint is kept for good, e.g. ``val/image_region/CIDEr`` or ``val/point_cloud/loss_llm``; none keeps none."""

    def __post_init__(self) -> None:
        for name in ("every", "num_examples", "num_loss_batches"):
            at_least(f"validation.{name}", getattr(self, name), 0)

    def check_keep_best(self, model: ModelConfig, modalities: tuple[str, ...]) -> None:
        """Whether validation of ``modalities`` will give the score that ``keep_best`` names; a ``ValueError`` lists those it gives."""
        given = []
        for modality in modalities:
            terms = (*model.terms_of(modality), TOTAL) if self.num_loss_batches else ()
            given += [loss_name(VAL, modality, term) for term in terms]
            ranked = [metric.name for metric in while_training() if metric.better is not None]
            given += [value_name(VAL, name, modality) for name in ranked if self.num_examples]
        if self.keep_best not in given:
            raise ValueError(
                f"validation.keep_best: {self.keep_best!r} is not a score of this run's validation; they are {', '.join(given)}"
            )


@dataclass(frozen=True)
class TrackingConfig:
    """Where metrics go besides the run folder's journal."""

    experiment: str = "regionblip"
    """MLflow experiment."""
    mlflow: bool = True
    """Copy the journal to MLflow (MLFLOW_TRACKING_URI, else a sqlite file in the output folder)."""


@dataclass(frozen=True)
class LimitsConfig:
    """How long a supervised run (`rb train`, `rb launch`) may make no progress before it is ended as hung, by phase; in seconds.

    Progress is a micro-batch, a batch of validation, a part of a checkpoint. A change does not change what is computed.
    """

    start_s: float = 1800.0
    """From the start of a rank to its first step: loading models, compiling kernels; and in any step while ``train.compile`` makes graphs."""
    training_s: float = 300.0
    """In training steps."""
    validation_s: float = 300.0
    """In validation."""
    saving_s: float = 900.0
    """While the training state is gathered and written, and at the end."""
    node_s: float = 20.0
    """Longest silence of a node before it counts as lost."""

    def __post_init__(self) -> None:
        for name in ("start_s", "training_s", "validation_s", "saving_s", "node_s"):
            at_least(f"limits.{name}", getattr(self, name), 1)

    @property
    def longest_s(self) -> float:
        """The longest silence of a rank that any phase allows."""
        return max(self.start_s, self.training_s, self.validation_s, self.saving_s)


def check_templates(where: str, templates: Sequence[str]) -> None:
    """``ValueError`` unless each holds ``{}`` once."""
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"{where}: {template!r:.100} must hold {{}} once, where the name of the class goes")


@dataclass(frozen=True)
class DecodeConfig:
    """How captions are generated."""

    num_beams: int = 5
    """Beams."""
    max_new_tokens: int = 30
    """Longest caption."""
    min_new_tokens: int = 1
    """Shortest; the released code's 8 is a floor that RefCOCO's 3.6 words on average suffer from."""
    length_penalty: float = 1.0
    """Exponent of the length that scores are divided by."""
    image_size: int | None = None
    """Side of the image when it is not the encoder's own (the released code evaluates at 364)."""
    merge_lora: bool | None = None
    """Add the LLM's LoRA to copies of its weights while captions are made, which saves all kernels of LoRA at every word. None does it where
    weights are float32; in bfloat16 the sum is rounded, which changes a caption now and then."""
    class_templates: tuple[str, ...] = ()
    """Zero-shot: prompts of a class, with {} for its name; the class is the mean of their vectors. None: one, that of the modality."""

    def __post_init__(self) -> None:
        check_templates("decode.class_templates", self.class_templates)
        at_least("decode.num_beams", self.num_beams, 1)
        at_least("decode.min_new_tokens", self.min_new_tokens, 0)
        if self.max_new_tokens < max(1, self.min_new_tokens):
            raise ValueError(
                f"decode.max_new_tokens: must be at least min_new_tokens = {self.min_new_tokens}, got {self.max_new_tokens}"
            )


@dataclass(frozen=True)
class RunConfig:
    """One training run, complete."""

    name: str = "run"
    """Name of the run and of its folder."""
    seed: int = 0
    """Keys every draw: initialisation, order, augmentation, negatives."""
    output_dir: str = "runs"
    """The run folder is ``output_dir/name``."""
    init_from: str | None = None
    """A run folder whose trained parameters this run starts from (warm start; optimizer and step start from zero)."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The model."""
    data: DataConfig = field(default_factory=DataConfig)
    """The data."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimizer."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The loop."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """Validation while training."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Tracking."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    """When a run counts as hung."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    """Generation in evaluation jobs of this run."""

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name.startswith(".") or not self.name.isprintable():
            raise ValueError(f"name: must be a plain folder name, got {self.name!r}")
        for part, listed in (("train", self.data.train), ("val", self.data.val)):
            for modality in listed:
                if modality not in self.model.train_modalities:
                    raise ValueError(
                        f"data.{part}.{modality}: has data but is not in model.train_modalities "
                        f"({', '.join(self.model.train_modalities)}); list it there, or remove its data"
                    )
        if self.train.micro_batch_size == AUTO and self.model.itm_negatives == "local":
            raise ValueError(
                "train.micro_batch_size: auto would let the machine decide the results of model.itm_negatives=local, which seeks negatives "
                "within a micro-batch; give a number, such as train.micro_batch_size=16"
            )
        if self.validation.every:
            if not self.data.val:
                raise ValueError(
                    f"validation.every: is {self.validation.every}, but data.val lists no manifest; "
                    "list held-out manifests there, or set it to 0"
                )
            if self.validation.keep_best is not None:
                self.validation.check_keep_best(self.model, tuple(self.data.val))
