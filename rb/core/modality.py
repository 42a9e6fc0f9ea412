"""The table of modalities: the one place where a modality is named and described.

A modality is referred to by its name, a string, everywhere (configs, batches, adapters, metrics). A new one is one row here, one list of
manifests in a run file, and whatever its source needs if that source is neither images nor points.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

IMAGE = "image"
IMAGE_REGION = "image_region"
POINT_CLOUD = "point_cloud"
POINT_CLOUD_REGION = "point_cloud_region"


@dataclass(frozen=True)
class ModalitySpec:
    """What the system must know about one modality.

    Attributes:
        name: as it appears in configs, files and metric names; no dots (PEFT adapter names cannot hold them).
        source: which frozen encoder reads its inputs, ``"image"`` or ``"points"``.
        box_dim: numbers in a box, 0 where a sample is a whole source (4: xyxy in [0, 1]; 6: min xyz, max xyz, (v + 1) / 2).
        t5_prefix: the fixed text that FlanT5 reads behind the soft prompt (the paper fixes one prefix for images, one for clouds).
        class_prompt: what zero-shot makes of the name of a class, in place of ``{}``, where nothing else is told.
        trains_by_default: whether it has trainable parameters in a default run; ``image`` is BLIP-2 itself and has none.
        up: the axis that is drawn upwards where the source is points; objects stand on their y axis (Objaverse), rooms on z (ScanNet).
    """

    name: str
    source: str
    box_dim: int
    t5_prefix: str
    trains_by_default: bool
    up: str = "y"
    class_prompt: str = "{}"

    @property
    def regional(self) -> bool:
        """Whether a sample is one region of its source, so that PaFE and the regression loss apply."""
        return self.box_dim > 0


MODALITIES: dict[str, ModalitySpec] = {
    spec.name: spec
    for spec in (
        ModalitySpec(IMAGE, "image", 0, "a photo of", trains_by_default=False, class_prompt="a photo of a {}"),
        ModalitySpec(IMAGE_REGION, "image", 4, "a photo of", trains_by_default=True),
        ModalitySpec(
            POINT_CLOUD,
            "points",
            0,
            "a point cloud of",
            trains_by_default=True,
            class_prompt="a point cloud model of {}",
        ),
        ModalitySpec(POINT_CLOUD_REGION, "points", 6, "a point cloud of", trains_by_default=True, up="z"),
    )
}


def modality_spec(name: str) -> ModalitySpec:
    """The row of ``name``; a ``ValueError`` names the known ones."""
    try:
        return MODALITIES[name]
    except KeyError:
        raise ValueError(f"unknown modality {name!r:.100}; known: {', '.join(MODALITIES)}") from None


def in_table_order(names: Iterable[str]) -> tuple[str, ...]:
    """``names`` without repetition, in the table's order, so that every rank and every run lists them alike."""
    wanted = {modality_spec(name).name for name in names}
    return tuple(name for name in MODALITIES if name in wanted)
