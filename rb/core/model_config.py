"""The ``model`` section of a run's configuration, and the checks that all sections use. ``rb/core/config.py`` holds the others.

A sentence under each field says what it means; every check names field, value and what would be right.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rb.core.loss_terms import LOSS_TERMS
from rb.core.modality import MODALITIES, in_table_order, modality_spec

TEXT_BRANCHES = ("stage1", "hub-itm", "bert")
SHARED_ADAPTER = "shared"  # name of the one adapter of ``model.lora.shared``
CLOUD_BOX_DIMS = {"min_max": 6, "metres_corners": 24}  # ``model.box3d`` -> numbers in a box of a cloud


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """A ``ValueError`` that lists what is allowed, for anything else."""
    if value not in allowed:
        raise ValueError(f"{name}: {value!r} is not one of {', '.join(allowed)}")


def at_least(name: str, value: float, least: float) -> None:
    """A ``ValueError`` for a smaller value."""
    if value < least:
        raise ValueError(f"{name}: must be at least {least}, got {value}")


@dataclass(frozen=True)
class LoraConfig:
    """LoRA of every adapter (q and v of the Q-Former's attentions and of the LLM's)."""

    r: int = 8
    """Rank."""
    alpha: float = 1.0
    """Scale is alpha / r."""
    llm: bool = True
    """LoRA in the LLM too; false (an ablation) leaves it to the Q-Former."""
    qformer: bool = True
    """LoRA in the Q-Former too; false (an ablation) leaves it to the LLM."""
    shared: bool = False
    """One adapter that all trained modalities use and train (an ablation) instead of one each."""
    targets: tuple[str, ...] = ()
    """Names of the LLM's layers that get LoRA, e.g. ``[q_proj, v_proj]``; none listed is the query and value of its family."""

    def __post_init__(self) -> None:
        at_least("model.lora.r", self.r, 1)
        if not self.llm and not self.qformer:
            raise ValueError(
                "model.lora: llm and qformer are both false, so no layer has LoRA; set one of them to true"
            )
        if self.targets and not self.llm:
            raise ValueError(
                f"model.lora.targets: names layers of the LLM ({', '.join(self.targets)}), but model.lora.llm is false; "
                "remove the names, or set model.lora.llm=true"
            )

    def adapter_of(self, modality: str) -> str:
        """Name of the adapter that a trained modality uses: its own name, or the shared one's."""
        return SHARED_ADAPTER if self.shared else modality


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
    point_qformer: str = "blip2"
    """The second Q-Former of ``model.point_qformer: separate``. ``blip2``: a copy, text branch included; ``bert``: BERT, with new
    cross-attention and feed-forward layers of the queries (released code)."""

    def __post_init__(self) -> None:
        one_of("model.init.query_tokens", self.query_tokens, ("blip2", "normal"))
        one_of("model.init.language_projection", self.language_projection, ("blip2", "default"))
        one_of("model.init.heads", self.heads, ("source", "default"))
        one_of("model.init.pafe", self.pafe, ("default", "zero"))
        one_of("model.init.point_qformer", self.point_qformer, ("blip2", "bert"))


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
    """A ``bert-base-uncased`` folder: the LM head of ``text_branch: hub-itm``, the start of ``init.point_qformer: bert``, and the
    tokenizer where the text branch's folder has none."""
    text_head: str = ""
    """A file that ``rb import-released`` writes: the row of [DEC] and the bias of the LM head that a released checkpoint was trained
    beside; they take the place of the text branch's own."""


@dataclass(frozen=True)
class ModelConfig:
    """The model: foundation, what is added to it, and its losses."""

    foundation: FoundationConfig = field(default_factory=FoundationConfig)
    """The frozen checkpoint set."""
    train_modalities: tuple[str, ...] = field(
        default_factory=lambda: tuple(name for name, spec in MODALITIES.items() if spec.trains_by_default)
    )
    """Modalities that train: each has its own parameters. ``image`` may be listed; then it is no longer bit-exact BLIP-2."""
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
    box2d: str = "exact"
    """Box of an image: ``exact``, or ``whole_pixels``, fractions of pixels cut off before it is divided by width and height (released code)."""
    box3d: str = "min_max"
    """Box of a cloud: ``min_max``, 6 numbers in the cloud's own frame mapped to [0, 1], or ``metres_corners``, the released code's 24:
    eight corners in the cloud's own units, extents of y and z exchanged."""
    cloud_frame: str = "unit"
    """Points of scenes (clouds with a box): ``unit``, mean 0 and largest radius 1 as objects always, or ``metres``, as they are stored."""
    pafe: bool = True
    """Position-assisted feature extraction; false is the paper's Table 2 (queries, LoRA and regression stay)."""
    pafe_hidden: int = 128
    """Hidden width of PaFE."""
    loss_weights: dict[str, float] = field(
        default_factory=lambda: {term.name: term.default_weight for term in LOSS_TERMS.values()}
    )
    """Weight of each term in the total (paper eq. 2). A term of weight 0 is not computed."""
    itm_modalities: tuple[str, ...] = field(default_factory=lambda: tuple(MODALITIES))
    """Modalities that have an ITM term."""
    itm_negatives: str = "global"
    """Hard negatives chosen in the whole contrastive batch (``global``) or in the sample's own micro-batch (``local``)."""
    itc_mask_duplicates: bool = True
    """Leave the same object and the same caption out of ITC's and ITM's negatives."""
    same_image_negatives: str = "keep"
    """Other objects of the same image or cloud are negatives of ITC and ITM (``keep``), hard ones, or are left out (``leave_out``)."""
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
    """Frozen encoders, LLM and linear layers of the Q-Former: ``bfloat16``, ``float32``, or ``auto`` (bfloat16 on a GPU, float32 on a CPU)."""
    attention: str = "sdpa"
    """Attention of ViT and LLM: ``sdpa``, ``eager``, or ``flash_attention_2`` (extra ``[flash]``). The Q-Former and T5 always use sdpa."""

    def __post_init__(self) -> None:
        for name in ("train_modalities", "itm_modalities"):
            object.__setattr__(self, name, in_table_order(getattr(self, name)))
        unknown = sorted(set(self.loss_weights) - set(LOSS_TERMS))
        if unknown:
            raise ValueError(f"model.loss_weights: unknown term {unknown[0]!r}; terms: {', '.join(LOSS_TERMS)}")
        for name, weight in self.loss_weights.items():
            at_least(f"model.loss_weights.{name}", weight, 0.0)
        given = self.loss_weights
        complete = {name: float(given.get(name, term.default_weight)) for name, term in LOSS_TERMS.items()}
        object.__setattr__(self, "loss_weights", complete)
        if not any(self.loss_weights.values()):
            raise ValueError(
                "model.loss_weights: all terms are 0, there is nothing to train; give one a positive weight"
            )
        one_of("model.llm", self.llm, ("auto", "decoder", "encoder_decoder"))
        one_of("model.point_qformer", self.point_qformer, ("shared", "separate"))
        one_of("model.box2d", self.box2d, ("exact", "whole_pixels"))
        one_of("model.box3d", self.box3d, tuple(CLOUD_BOX_DIMS))
        one_of("model.cloud_frame", self.cloud_frame, ("unit", "metres"))
        one_of("model.itm_negatives", self.itm_negatives, ("global", "local"))
        one_of("model.same_image_negatives", self.same_image_negatives, ("keep", "leave_out"))
        one_of("model.text_branch", self.text_branch, TEXT_BRANCHES)
        one_of("model.numerics", self.numerics, ("hf", "lavis"))
        one_of("model.frozen_dtype", self.frozen_dtype, ("auto", "bfloat16", "float32"))
        one_of("model.attention", self.attention, ("sdpa", "eager", "flash_attention_2"))
        if self.lora.shared and self.point_qformer == "separate":
            raise ValueError(
                "model.lora.shared: is true, but with model.point_qformer: separate no Q-Former is read by all modalities; "
                "set model.point_qformer=shared, or model.lora.shared=false"
            )
        at_least("model.max_text_tokens", self.max_text_tokens, 4)
        at_least("model.num_points", self.num_points, 1)
        at_least("model.num_scene_points", self.num_scene_points or 1, 1)
        at_least("model.pafe_hidden", self.pafe_hidden, 1)

        for modality in self.train_modalities:
            if not self.terms_of(modality):
                weighted = ", ".join(name for name, weight in self.loss_weights.items() if weight > 0)
                raise ValueError(
                    f"model.loss_weights: no term of positive weight ({weighted}) applies to {modality}; give another term "
                    f"a weight, or take {modality} out of model.train_modalities"
                )

    def terms_of(self, modality: str) -> tuple[str, ...]:
        """Names of the loss terms that ``modality`` trains on, in the table's order: of positive weight, and applying to it."""
        spec = modality_spec(modality)
        return tuple(
            name
            for name, term in LOSS_TERMS.items()
            if self.loss_weights[name] > 0
            and term.applies(spec)
            and (not term.listed_in or modality in getattr(self, term.listed_in))
        )

    def box_dim(self, modality: str) -> int:
        """Numbers in a box of ``modality`` as this model reads it; 0 where a sample is a whole source."""
        spec = modality_spec(modality)
        return CLOUD_BOX_DIMS[self.box3d] if spec.box_dim == CLOUD_BOX_DIMS["min_max"] else spec.box_dim
