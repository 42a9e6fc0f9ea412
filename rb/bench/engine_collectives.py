"""What DeepSpeed's optimizer step and the loop communicate: the real engine over parameters of a run's shapes, on played ranks.

``rb.core.dist.played`` has the ranks; the model itself is not needed, since its own collectives are counted where it runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rb.core import dist
from rb.core.batch import LossTerms
from rb.core.config import OptimConfig, TrainConfig
from rb.core.step_layout import StepLayout
from rb.costs.executed import Counter, Counts
from rb.model.region_blip import RegionBLIP
from rb.training.agree import agreed
from rb.training.engine import Engine


@dataclass
class _Named:
    """As much of a micro-batch as the engine looks at."""

    modality: str
    ids: Sequence[str] = ()
    positions: Sequence[int] = ()


class _Weights(nn.Module):
    """The parameters that a model trains, as zeros on the CPU, with a loss that gives those of the active modality a gradient."""

    def __init__(self, model: RegionBLIP) -> None:
        super().__init__()
        for name, parameter in model.trainable_parameters().items():
            self.register_parameter(name.replace(".", "/"), nn.Parameter(torch.zeros(parameter.shape, device="cpu")))
        self.users = {name.replace(".", "/"): users for name, users in model.parameter_modalities().items()}

    def shares(self, batches: Sequence[_Named], layout: StepLayout) -> Iterator[tuple[_Named, None]]:
        """The engine's contract."""
        assert len(batches) == layout.grad_accum_steps
        return ((batch, None) for batch in batches)

    def forward(self, batch: _Named, share: None) -> LossTerms:
        """The sum of all parameters of the batch's modality."""
        del share
        used: list[Tensor] = [p.sum() for name, p in self.named_parameters() if batch.modality in self.users[name]]
        loss = torch.stack(used).sum()
        return LossTerms({"llm": loss}, loss)


def count_engine(
    model: RegionBLIP, train: TrainConfig, optim: OptimConfig, micro_batch: int
) -> dict[str, dict[str, Counts]]:
    """What the engine and the loop communicate in a step of one micro-batch of each modality: modality -> part -> counts without launches.

    Args:
        model: whose trained parameters give the shapes.
        train: the run's.
        micro_batch: its samples; the global batch is as many of these as there are ranks.
    """
    weights = _Weights(model)
    whole = micro_batch * dist.world_size()
    train = replace(train, global_batch_size=whole, micro_batch_size=micro_batch, contrastive_batch_size=None)
    found: dict[str, dict[str, Counts]] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*timeout is now only supported")  # played ranks have none
        warnings.filterwarnings(
            "ignore", message=".*all_gather_into_tensor", category=FutureWarning
        )  # DeepSpeed's call
        engine = Engine(weights, weights.users, optim, train)
        for modality in model.parts:
            step, loop = Counter(), Counter()
            with step:
                engine.train_step(modality, optim.lr, iter([_Named(modality)]))  # type: ignore[list-item]
            with loop:
                agreed(0, 0)
            found[modality] = {"engine": step.found.communication(), "loop": loop.found.communication()}
        engine.close()
    return found
