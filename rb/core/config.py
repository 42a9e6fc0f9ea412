"""The configuration of a run: frozen dataclasses that check themselves. ``rb/core/run_file.py`` reads them from YAML.

A sentence under each field says what it means; defaults are this project's choices (paper first, then the released code; the table in
docs/architecture.md has all columns). Every check names field, value and what would be right.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rb.core.modality import MODALITIES, in_table_order, modality_spec

LOSS_NAMES = ("itc", "itm", "itg", "llm", "reg")
SCHEDULES = ("weighted_round_robin", "round_robin", "sequential")
TEXT_BRANCHES = ("stage1", "hub-itm", "bert")
CLOUD_BOX_DIMS = {"min_max": 6, "metres_corners": 24}  # ``model.box3d`` -> numbers in a box of a cloud


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: {value!r} is not one of {', '.join(allowed)}")


def _at_least(name: str, value: float, least: float) -> None:
    if value < least:
        raise ValueError(f"{name}: must be at least {least}, got {value}")


@dataclass(frozen=True)
class LoraConfig:
    """LoRA of every adapter (q and v of the Q-Former's attentions and of the LLM's)."""

    r: int = 8
    """Rank."""
    alpha: float = 1.0
    """Scale is alpha / r."""

    def __post_init__(self) -> None:
        _at_least("model.lora.r", self.r, 1)


@dataclass(frozen=True)
class InitConfig:
    """Where a modality's own parts start."""

    query_tokens: str = "blip2"
    """``blip2``: a copy of BLIP-2's; ``normal``: N(0, 0.02) as the released code."""
    language_projection: str = "blip2"
    """``blip2``: a copy; ``default``: PyTorch's default initialisation."""
    heads: str = "source"
    """vision_proj, text_proj, itm_head, temperature. ``source``: the text branch's file; ``default``: PyTorch's default, 0.07."""
    pafe: str = "default"
    """PaFE's last layer. ``default``: PyTorch's; ``zero``: queries start as if there were no box."""

    def __post_init__(self) -> None:
        _one_of("model.init.query_tokens", self.query_tokens, ("blip2", "normal"))
        _one_of("model.init.language_projection", self.language_projection, ("blip2", "default"))
        _one_of("model.init.heads", self.heads, ("source", "default"))
        _one_of("model.init.pafe", self.pafe, ("default", "zero"))


@dataclass(frozen=True)
class FoundationConfig:
    """The frozen checkpoint set, as local folders."""

    blip2: str = ""
    """A Hugging Face BLIP-2 folder (``blip2-opt-2.7b``, ...): ViT, Q-Former, projection, LLM, tokenizer, image processor."""
    text_branch: str = ""
    """What ``model.text_branch`` says: a LAVIS stage-1 file or its folder, a ``blip2-itm-vit-g`` folder, or a ``bert-base-uncased`` one.
    Its folder also holds the BERT tokenizer, unless ``bert`` does."""
    point_encoder: str = ""
    """Folder or file of a Point-BERT in its original layout; needed only for point modalities."""
    bert: str = ""
    """A ``bert-base-uncased`` folder: the LM head of ``text_branch: hub-itm``, and the tokenizer where the text branch's folder has none."""


@dataclass(frozen=True)
class ModelConfig:
    """The model: foundation, what is added to it, and its losses."""

    foundation: FoundationConfig = field(default_factory=FoundationConfig)
    """The frozen checkpoint set."""
    train_modalities: tuple[str, ...] = field(
        default_factory=lambda: tuple(name for name, spec in MODALITIES.items() if spec.trains_by_default)
    )
    """Modalities with parameters of their own. ``image`` may be listed; then it is no longer bit-exact BLIP-2."""
    text_branch: str = "stage1"
    """Where the Q-Former's text branch comes from: ``stage1``, LAVIS's file, which alone has all of it; ``hub-itm``, the public matching
    model, with BERT's LM head; ``bert``, BERT as it is (the released code)."""
    llm: str = "auto"
    """Kind of LLM that the foundation must hold: ``decoder`` (OPT), ``encoder_decoder`` (T5), or ``auto``: whichever it holds."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """LoRA of every adapter."""
    init: InitConfig = field(default_factory=InitConfig)
    """Where new parts start."""
    point_qformer: str = "shared"
    """Q-Former that reads points: ``shared``, BLIP-2's with LoRA, or ``separate``, a second one that trains whole (released code)."""
    shared_heads: bool = False
    """One text_proj, itm_head and temperature for all modalities (released code) instead of one each."""
    box3d: str = "min_max"
    """Box of a cloud: ``min_max``, 6 numbers in the cloud's own frame mapped to [0, 1], or ``metres_corners``, the released code's 24:
    eight corners in the cloud's own units, extents of y and z exchanged."""
    cloud_frame: str = "unit"
    """Points of scenes (clouds with a box): ``unit``, mean 0 and largest radius 1 as objects always, or ``metres``, as they are stored."""
    pafe: bool = True
    """Position-assisted feature extraction; false is the paper's Table 2 (queries, LoRA and regression stay)."""
    pafe_hidden: int = 128
    """Hidden width of PaFE."""
    loss_weights: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LOSS_NAMES, 1.0))
    """Weight of each term in the total (paper eq. 2). A term of weight 0 is not computed."""
    itm_modalities: tuple[str, ...] = field(default_factory=lambda: tuple(MODALITIES))
    """Modalities that have an ITM term."""
    itm_negatives: str = "global"
    """Hard negatives chosen over all ranks (``global``) or this one (``local``)."""
    itc_mask_duplicates: bool = True
    """Leave the same object and the same caption out of ITC's and ITM's negatives."""
    max_text_tokens: int = 32
    """Length of a caption, end token included."""
    prompt: str = ""
    """Literal text before the caption (decoders: none by default; T5: the modality's fixed prefix)."""
    numerics: str = "hf"
    """``hf``: bit-equal to plain transformers; ``lavis``: as LAVIS (``ln_vision`` eps 1e-5, plain GELU in T5, OPT's 50,272 own words)."""
    num_points: int = 8192
    """Points of a cloud that the point encoder reads."""
    num_scene_points: int | None = None
    """Points of a scene (a cloud with a box) where that is another number; the released code reads 40,000."""
    frozen_dtype: str = "auto"
    """Frozen encoders and LLM: ``bfloat16``, ``float32``, or ``auto`` (bfloat16 on a GPU, float32 on a CPU)."""
    attention: str = "sdpa"
    """Attention of ViT and LLM: ``sdpa``, ``eager``, or ``flash_attention_2`` (extra ``[flash]``). The Q-Former always uses sdpa."""

    def __post_init__(self) -> None:
        for name in ("train_modalities", "itm_modalities"):
            object.__setattr__(self, name, in_table_order(getattr(self, name)))
        unknown = sorted(set(self.loss_weights) - set(LOSS_NAMES))
        if unknown:
            raise ValueError(f"model.loss_weights: unknown term {unknown[0]!r}; terms: {', '.join(LOSS_NAMES)}")
        for name, weight in self.loss_weights.items():
            _at_least(f"model.loss_weights.{name}", weight, 0.0)
        object.__setattr__(self, "loss_weights", {name: float(self.loss_weights.get(name, 1.0)) for name in LOSS_NAMES})
        if not any(self.loss_weights.values()):
            raise ValueError(
                "model.loss_weights: all terms are 0, there is nothing to train; give one a positive weight"
            )
        _one_of("model.llm", self.llm, ("auto", "decoder", "encoder_decoder"))
        _one_of("model.point_qformer", self.point_qformer, ("shared", "separate"))
        _one_of("model.box3d", self.box3d, tuple(CLOUD_BOX_DIMS))
        _one_of("model.cloud_frame", self.cloud_frame, ("unit", "metres"))
        _one_of("model.itm_negatives", self.itm_negatives, ("global", "local"))
        _one_of("model.text_branch", self.text_branch, TEXT_BRANCHES)
        _one_of("model.numerics", self.numerics, ("hf", "lavis"))
        _one_of("model.frozen_dtype", self.frozen_dtype, ("auto", "bfloat16", "float32"))
        _one_of("model.attention", self.attention, ("sdpa", "eager", "flash_attention_2"))
        _at_least("model.max_text_tokens", self.max_text_tokens, 4)
        _at_least("model.num_points", self.num_points, 1)
        _at_least("model.num_scene_points", self.num_scene_points or 1, 1)
        _at_least("model.pafe_hidden", self.pafe_hidden, 1)

    def box_dim(self, modality: str) -> int:
        """Numbers in a box of ``modality`` as this model reads it; 0 where a sample is a whole source."""
        spec = modality_spec(modality)
        return CLOUD_BOX_DIMS[self.box3d] if spec.regional and spec.source == "points" else spec.box_dim


@dataclass(frozen=True)
class DataSource:
    """One manifest of one modality."""

    manifest: str
    """Path of a ``manifest.json`` (or its folder)."""
    repeat: int = 1
    """How often it is shown per epoch (the released code shows ScanRefer twice)."""

    def __post_init__(self) -> None:
        _at_least("data.*.repeat", self.repeat, 1)


@dataclass(frozen=True)
class DataConfig:
    """What is trained on, and how it is read."""

    train: dict[str, tuple[DataSource, ...]] = field(default_factory=dict)
    """Modality -> manifests. Every listed modality must be in ``model.train_modalities``."""
    val: dict[str, tuple[DataSource, ...]] = field(default_factory=dict)
    """Modality -> held-out manifests for the ``validation`` section, likewise."""
    augment: bool = True
    """Augment point clouds (objects: dropout, scale, shift, turn; scenes: 5 degrees about z). Images never are."""
    num_workers: int = 4
    """Loader processes per rank; the data and their order do not depend on it."""

    def __post_init__(self) -> None:
        for part in ("train", "val"):
            listed: dict[str, tuple[DataSource, ...]] = getattr(self, part)
            for name, sources in listed.items():
                modality_spec(name)
                if not sources:
                    raise ValueError(f"data.{part}.{name}: no manifest listed; list one, or remove the modality")
            object.__setattr__(self, part, {name: listed[name] for name in in_table_order(listed)})
        _at_least("data.num_workers", self.num_workers, 0)


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its rate, a pure function of the step."""

    lr: float = 1e-4
    """Peak rate."""
    min_lr: float = 1e-5
    """Rate at the last step (cosine)."""
    warmup_steps: int = 200
    """Linear warm-up."""
    warmup_start_lr: float = 1e-6
    """Rate of the first step."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's."""
    weight_decay: float = 0.05
    """Not on biases, norms and other parameters of fewer than two dimensions."""
    grad_clip: float = 0.0
    """Largest gradient norm; 0 is none."""
    kernel: str = "auto"
    """``auto`` (torch's fused AdamW on a GPU, for-each on a CPU), ``torch``, ``torch_fused`` or ``deepspeed_fused``."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(float(b) for b in self.betas))
        if len(self.betas) != 2 or not all(0.0 <= b < 1.0 for b in self.betas):
            raise ValueError(f"optim.betas: two numbers in [0, 1), got {list(self.betas)}")
        if not 0.0 <= self.min_lr <= self.lr:
            raise ValueError(f"optim.min_lr: must lie between 0 and optim.lr = {self.lr}, got {self.min_lr}")
        for name in ("warmup_steps", "warmup_start_lr", "weight_decay", "grad_clip"):
            _at_least(f"optim.{name}", getattr(self, name), 0)
        _one_of("optim.kernel", self.kernel, ("auto", "torch", "torch_fused", "deepspeed_fused"))


@dataclass(frozen=True)
class TrainConfig:
    """The loop: sizes, length, schedule, saving, engine."""

    global_batch_size: int = 128
    """Samples of one optimizer step over all ranks."""
    micro_batch_size: int = 16
    """Samples of one forward pass on one rank. Accumulation is derived: global / (micro * ranks)."""
    schedule: str = "weighted_round_robin"
    """Which modality a step trains: ``weighted_round_robin``, ``round_robin`` or ``sequential``."""
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
    timeout_s: float = 600.0
    """How long a rank waits for another in a collective."""
    num_threads: int = 0
    """CPU threads of one rank; 0 leaves torch's choice."""

    def __post_init__(self) -> None:
        _one_of("train.schedule", self.schedule, SCHEDULES)
        for name in (
            "global_batch_size",
            "micro_batch_size",
            "epochs",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
        ):
            _at_least(f"train.{name}", getattr(self, name), 1)
        if self.max_steps is not None:
            _at_least("train.max_steps", self.max_steps, 1)
        _at_least("train.timeout_s", self.timeout_s, 1)

    def grad_accum_steps(self, num_ranks: int) -> int:
        """Micro-batches of a step on each rank; ``ValueError`` names the three numbers where they do not divide."""
        per_pass = self.micro_batch_size * num_ranks
        if self.global_batch_size % per_pass:
            raise ValueError(
                f"train.global_batch_size {self.global_batch_size} is not a multiple of train.micro_batch_size "
                f"{self.micro_batch_size} x {num_ranks} ranks = {per_pass}; choose sizes that divide"
            )
        return self.global_batch_size // per_pass


@dataclass(frozen=True)
class ValidationConfig:
    """Held-out losses and captions while training; nothing about the training itself changes by it."""

    every: int = 0
    """Validate on ``data.val`` every so many steps, and after the last; 0 is never."""
    num_examples: int = 200
    """Captions per modality, spread evenly over its manifests; 0 is none."""
    num_loss_batches: int = 8
    """Micro-batches of every rank whose losses are averaged, per modality; never more than one pass over its samples."""
    keep_best: str | None = None
    """Score whose best checkpoint is kept for good, e.g. ``val/image_region/CIDEr`` or ``val/point_cloud/loss_llm``; none keeps none."""

    def __post_init__(self) -> None:
        for name in ("every", "num_examples", "num_loss_batches"):
            _at_least(f"validation.{name}", getattr(self, name), 0)

    def check_keep_best(self, model: ModelConfig, modalities: tuple[str, ...]) -> None:
        """Whether validation of ``modalities`` will give the score that ``keep_best`` names; a ``ValueError`` lists those it gives."""
        given = []
        for modality in modalities:
            spec = modality_spec(modality)
            terms = [term for term in LOSS_NAMES if model.loss_weights[term] > 0 and (term != "reg" or spec.regional)]
            if modality not in model.itm_modalities:
                terms = [term for term in terms if term != "itm"]
            scores = [f"loss_{term}" for term in (*terms, "total")] if self.num_loss_batches else []
            given += [f"val/{modality}/{score}" for score in (*scores, *(["CIDEr"] if self.num_examples else []))]
        if self.keep_best not in given:
            raise ValueError(
                f"validation.keep_best: {self.keep_best!r} is no score of this run's validation; they are {', '.join(given)}"
            )


@dataclass(frozen=True)
class TrackingConfig:
    """Where metrics go besides the run folder's journal."""

    experiment: str = "regionblip"
    """MLflow experiment."""
    mlflow: bool = True
    """Copy the journal to MLflow (MLFLOW_TRACKING_URI, else a sqlite file in the output folder)."""


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

    def __post_init__(self) -> None:
        _at_least("decode.num_beams", self.num_beams, 1)
        _at_least("decode.min_new_tokens", self.min_new_tokens, 0)
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
    """A run folder whose trained parameters this run starts from (warm start; optimizer and step start anew)."""
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
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    """Generation in evaluation jobs of this run."""

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ValueError(f"name: must be a plain folder name, got {self.name!r}")
        for part, listed in (("train", self.data.train), ("val", self.data.val)):
            for modality in listed:
                if modality not in self.model.train_modalities:
                    raise ValueError(
                        f"data.{part}.{modality}: has data but is not in model.train_modalities "
                        f"({', '.join(self.model.train_modalities)}); list it there, or remove its data"
                    )
        if self.validation.every:
            if not self.data.val:
                raise ValueError(
                    f"validation.every: is {self.validation.every}, but data.val lists no manifest; "
                    "list held-out manifests there, or set it to 0"
                )
            if self.validation.keep_best is not None:
                self.validation.check_keep_best(self.model, tuple(self.data.val))
