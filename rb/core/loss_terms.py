"""The table of loss terms: what configuration, validation and pages must know of each. Their functions are in rb/model/loss_terms.py.

A new term is one row here and one function there. Its default weight is 0, so that run files and run folders of before compute the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rb.core.modality import ModalitySpec


def everywhere(spec: ModalitySpec) -> bool:  # noqa: ARG001 (a row's question has one form)
    """Applies to every modality."""
    return True


def regional(spec: ModalitySpec) -> bool:
    """Applies where a sample is a region and so has a box."""
    return spec.regional


@dataclass(frozen=True)
class LossTerm:
    """One term of the total loss (paper eq. 2).

    Attributes:
        name: as in ``model.loss_weights`` and, as ``loss_NAME``, in metrics.
        meaning: one line for a reader.
        default_weight: its weight where a run file gives none. 1 for the terms of the paper, 0 for any later one.
        applies: the modalities that have it.
        listed_in: field of ``ModelConfig`` that lists the modalities that have it; empty where all have it to which it applies.
        reads_text: whether it needs the caption's pass through the Q-Former.
        contrasts: whether it compares samples with each other, so that it needs all of the contrastive batch.
    """

    name: str
    meaning: str
    default_weight: float
    applies: Callable[[ModalitySpec], bool] = everywhere
    listed_in: str = ""
    reads_text: bool = False
    contrasts: bool = False


LOSS_TERMS: dict[str, LossTerm] = {
    term.name: term
    for term in (
        LossTerm("itc", "image-text contrast", 1.0, reads_text=True, contrasts=True),
        LossTerm("itm", "image-text matching", 1.0, listed_in="itm_modalities", reads_text=True, contrasts=True),
        LossTerm("itg", "caption written by the Q-Former", 1.0, reads_text=True),
        LossTerm("llm", "caption written by the LLM", 1.0),
        LossTerm("reg", "box regression", 1.0, applies=regional),
    )
}
