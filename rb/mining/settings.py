"""Settings of what comes behind the models: rewriting, screening, the set that is written, and how stages are spread over a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass, field

PROMPT = (
    "Rewrite this description of one thing in a picture as one short sentence. Keep every fact, add none. Answer with the sentence alone.\n"
    "Description: {}"
)
MOST_NEAR_BITS = 16  # the tolerance of ``rb data verify --against``


@dataclass(frozen=True)
class RefineConfig:
    """One compact sentence for each region, by a chat model behind an OpenAI-compatible endpoint."""

    url: str = ""
    """Of the endpoint, up to and with ``/v1``. Not part of what outputs depend on: the same model elsewhere writes the same."""
    model: str = ""
    """The model's name there."""
    prompt: str = PROMPT
    """What the model is asked; ``{}`` stands for the description."""
    max_tokens: int = 40
    """Longest answer."""
    parallel: int = 8
    """Questions under way at a time."""
    limit_s: float = 120
    """Seconds to wait for an answer."""

    def __post_init__(self) -> None:
        if not self.url or not self.model:
            raise ValueError(
                "refine: url and model must both be set; leave the section out to keep descriptions as they are"
            )
        if "{}" not in self.prompt:
            raise ValueError(f"refine.prompt: {self.prompt!r} has no place {{}} for the description")
        if self.parallel < 1 or self.max_tokens < 1:
            raise ValueError(f"refine: parallel {self.parallel} and max_tokens {self.max_tokens} must be at least 1")


@dataclass(frozen=True)
class ScreenConfig:
    """Which captions and images are left out, looked at one by one."""

    most_foreign: float = 0
    """Largest share of a caption's letters that are not Latin, 0 to 1."""
    sure: float = 0.8
    """A caption counts as of another language from this score of the language model on, 0 to 1: short English phrases are often taken for
    other languages with a low score."""
    same_place: float = 0.5
    """Of two boxes of an image with the same caption that overlap by at least this IoU, the second is dropped."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise ValueError(f"screen.{name}: {value} must be from 0 to 1")


@dataclass(frozen=True)
class FinishConfig:
    """The set that is written."""

    split: str = "train"
    """Of the set."""
    near_bits: int = 8
    """Bits of 256 in which the looks of two images may differ and still be of the same picture; 0 for equal looks only."""
    max_shard_bytes: int = 500_000_000
    """Largest shard of the set."""

    def __post_init__(self) -> None:
        if not 0 <= self.near_bits <= MOST_NEAR_BITS:
            raise ValueError(f"finish.near_bits: {self.near_bits} must be from 0 to {MOST_NEAR_BITS} (of 256 bits)")


@dataclass(frozen=True)
class StageSize:
    """How a stage is spread over the cluster."""

    actors: int = 1
    """Processes of the stage."""
    cpus: float = 1
    """CPUs of each."""
    gpus: float = 0
    """GPUs of each; 0.5 for two on one GPU."""

    def __post_init__(self) -> None:
        if self.actors < 1 or self.cpus < 0 or self.gpus < 0:
            raise ValueError(
                f"ray: actors {self.actors} must be at least 1, cpus {self.cpus:g} and gpus {self.gpus:g} at least 0"
            )


@dataclass(frozen=True)
class RayConfig:
    """The cluster. Nothing here changes what is written."""

    address: str = ""
    """Of a running cluster (``auto``: the one that ``ray start`` made on this machine); empty starts one here for the job."""
    masks: StageSize = field(default_factory=StageSize)
    """Of stage masks."""
    caption: StageSize = field(default_factory=StageSize)
    """Of stage caption."""
    name: StageSize = field(default_factory=StageSize)
    """Of stage name."""
    filter: StageSize = field(default_factory=StageSize)
    """Of stage filter."""
    describe: StageSize = field(default_factory=StageSize)
    """Of stage describe."""
    refine: StageSize = field(default_factory=StageSize)
    """Of stage refine."""
    screen: StageSize = field(default_factory=StageSize)
    """Of stage screen."""

    def size(self, stage: str) -> StageSize:
        """Of the stage with this name."""
        found: StageSize = getattr(self, stage)
        return found
