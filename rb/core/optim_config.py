"""The ``optim`` section of a run: AdamW, its rate, and how a run that was made longer (``rb extend``) goes on with both."""

from __future__ import annotations

from dataclasses import dataclass

from rb.core.model_config import at_least, one_of

KEEP, STRETCH, RESTART = RATES = ("keep", "stretch", "restart")


@dataclass(frozen=True)
class Extension:
    """A run made longer by ``rb extend``. Its rate is still a pure function of the step (rb/training/optim.py)."""

    rate: str
    """What the rate does: ``keep`` (as before, then ``min_lr`` from the old end on), ``stretch`` (from ``from_step`` on the cosine ends at the
    new end) or ``restart`` (at the old end a new warm-up and a new cosine begin)."""
    from_step: int
    """Steps that were saved when the run was made longer."""
    old_steps: int
    """Length of the run before, in steps."""
    new_steps: int
    """Length since then."""
    by: str = ""
    """Who did it: user@host."""
    when: str = ""
    """Local time."""

    def __post_init__(self) -> None:
        one_of("optim.extensions.rate", self.rate, RATES)
        at_least("optim.extensions.from_step", self.from_step, 0)
        at_least("optim.extensions.old_steps", self.old_steps, max(1, self.from_step))
        at_least("optim.extensions.new_steps", self.new_steps, self.old_steps + 1)

    def __str__(self) -> str:
        """For logs and tags."""
        return f"{self.old_steps} -> {self.new_steps} steps after {self.from_step}, rate {self.rate}, by {self.by}, {self.when}"


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
    idle_groups: str = "still"
    """Parameters that a step's modality does not use: ``still``, or ``moved`` by old momentum and decay, as DeepSpeed moves them. The
    latter is a defect of the released code, here for the ablation that measures it only."""
    kernel: str = "auto"
    """``auto`` (torch's fused AdamW on a GPU, for-each on a CPU), ``torch``, ``torch_fused`` or ``deepspeed_fused``."""
    extensions: tuple[Extension, ...] = ()
    """How the run was made longer, oldest first; written by ``rb extend``."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(float(b) for b in self.betas))
        if len(self.betas) != 2 or not all(0.0 <= b < 1.0 for b in self.betas):
            raise ValueError(f"optim.betas: two numbers in [0, 1), got {list(self.betas)}")
        if not 0.0 <= self.min_lr <= self.lr:
            raise ValueError(f"optim.min_lr: must lie between 0 and optim.lr = {self.lr}, got {self.min_lr}")
        for name in ("warmup_steps", "warmup_start_lr", "weight_decay", "grad_clip"):
            at_least(f"optim.{name}", getattr(self, name), 0)
        one_of("optim.idle_groups", self.idle_groups, ("still", "moved"))
        one_of("optim.kernel", self.kernel, ("auto", "torch", "torch_fused", "deepspeed_fused"))
        self._check_extensions()

    def _check_extensions(self) -> None:
        end = 0
        for number, extension in enumerate(self.extensions):
            where = f"optim.extensions[{number}]"
            if number and extension.old_steps != end:
                raise ValueError(
                    f"{where}.old_steps: must be {end}, where the one before ends, got {extension.old_steps}"
                )
            end = extension.new_steps
            added = end - extension.old_steps
            if extension.rate == RESTART and added <= self.warmup_steps:
                raise ValueError(
                    f"{where}: the {added} steps that are added must be more than optim.warmup_steps = {self.warmup_steps}, with which "
                    f"the rate `{RESTART}` begins; add more steps, or choose the rate `{KEEP}` or `{STRETCH}`"
                )
