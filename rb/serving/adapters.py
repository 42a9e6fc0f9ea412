"""Several models on one foundation, held once: trained checkpoints or exports, the base model, and the base model on crops.

Each checkpoint becomes a model of its own with its adapters; then its frozen tensors are exchanged for those of the first model, after a
comparison of every number. So choosing another model costs no reload, and memory holds the foundation once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from rb.api import inputs
from rb.api.model import Ready, RegionBLIP
from rb.core.device import usable_device
from rb.inference.load import Loaded, build_trained, example_transform, read_trained
from rb.model.weights.build import build_model

BASE, CROPS = "base", "crops"
TRAINED = "checkpoint"


@dataclass(frozen=True)
class Asked:
    """Sources ready for a model and the number of answers that each caller's box gets from them.

    Attributes:
        modality: whose parts of the model read them.
        sources: in order; each has as many rows as boxes, or one.
        repeats: how often the one answer is given: the base model says the same of every box.
    """

    modality: str
    sources: tuple[Ready, ...]
    repeats: int = 1


@dataclass(frozen=True)
class Adapter:
    """One choice of the field ``model``.

    Attributes:
        name: as requests say it.
        kind: ``checkpoint`` reads a box by its trained parts, ``base`` reads the whole image whatever the box, ``crops`` reads the box cut out.
        captioner: the model with its transforms and tokenizers; base and crops share one.
    """

    name: str
    kind: str
    captioner: RegionBLIP

    def ask_image(self, image: Image.Image, boxes: Sequence[Sequence[float]] | None, box_format: str) -> Asked:
        """An image, upright and RGB, and its boxes (none: the whole). ``InputError``: a box that cannot be used; regions were not trained."""
        if boxes is None or self.kind == TRAINED:
            modality, sources, _ = self.captioner.image_sources(
                image, None if boxes is None else list(boxes), box_format
            )
            return Asked(modality, tuple(sources))
        pixels = []
        for number, box in enumerate(boxes):
            share = inputs.image_box(box, image.size, box_format, f"boxes[0][{number}]")
            pixels.append([value * side for value, side in zip(share, image.size * 2, strict=True)])
        if self.kind == BASE:
            modality, sources, _ = self.captioner.image_sources(image, None, None)
            return Asked(modality, tuple(sources), repeats=len(pixels))
        modality, sources, _ = self.captioner.image_sources([_cut(image, box) for box in pixels], None, None)
        return Asked(modality, tuple(sources))

    def ask_texts(self, modality: str) -> Asked:
        """No source: texts alone, in the space of a modality. ``InputError``: the modality was not trained."""
        self.captioner.require(modality)
        return Asked(modality, ())

    def ask_cloud(self, points: Any, boxes: Sequence[Sequence[float]] | None, box_format: str) -> Asked:
        """A cloud [N, 3 | 6] and its boxes (none: the whole). ``InputError`` as of ``ask_image``."""
        modality, sources, _ = self.captioner.cloud_sources(points, None if boxes is None else list(boxes), box_format)
        return Asked(modality, tuple(sources))


def _cut(image: Image.Image, box: Sequence[float]) -> Image.Image:
    """The smallest whole pixels that hold a box."""
    slack = 1e-4  # of a pixel: a share times a side may miss a whole number by a rounding
    left, top = math.floor(box[0] + slack), math.floor(box[1] + slack)
    right, bottom = math.ceil(box[2] - slack), math.ceil(box[3] - slack)
    return image.crop((left, top, max(left + 1, right), max(top + 1, bottom)))


def load_adapters(
    checkpoints: Sequence[tuple[str | None, Path]],
    foundation: Path | None = None,
    device: torch.device | str = "cpu",
    allow: Sequence[str] = (),
    with_base: bool = True,
) -> dict[str, Adapter]:
    """Models by name, the first is the default; ``base`` and ``crops`` come last.

    Args:
        checkpoints: (name, folder) of each; without a name that of its run.

    Raises:
        ValueError: a name twice, a folder that cannot be used (as of ``load_trained``), or another foundation than the first's.
    """
    device = usable_device(device)
    found: dict[str, Adapter] = {}
    first: Loaded | None = None
    for given, path in checkpoints:
        loaded = build_trained(read_trained(path, foundation), device, allow)
        assert loaded.trained is not None
        name = given or loaded.trained.name
        if name in found or name in (BASE, CROPS):
            raise ValueError(f"--checkpoint {path}: the name {name!r} is taken; give another, as NAME={path}")
        if first is None:
            first = loaded
        else:
            share_frozen(first.model, loaded.model, str(path))
        found[name] = Adapter(name, TRAINED, RegionBLIP(loaded))
    if first is not None and with_base:
        config = replace(first.built.config, train_modalities=())
        built = build_model(config, first.seed, device)
        share_frozen(first.model, built.model, BASE)
        transform = example_transform(built, first.seed, first.generation.image_size)
        captioner = RegionBLIP(Loaded(built, transform, first.generation, first.seed))
        found |= {name: Adapter(name, name, captioner) for name in (BASE, CROPS)}
    return found


def share_frozen(first: nn.Module, other: nn.Module, where: str) -> None:
    """Put the first model's frozen tensors in the place of the other's, which are the same numbers.

    Raises:
        ValueError: one of them differs: the other model stands on another foundation.
    """
    held = {_plain(name): tensor for name, tensor in _tensors(first) if not tensor.requires_grad}
    for place, module in other.named_modules():
        own = chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
        for name, tensor in list(own):
            same = None if tensor.requires_grad else held.get(_plain(f"{place}.{name}"))
            if same is None or same is tensor:
                continue
            if same.shape != tensor.shape or not torch.equal(same, tensor):
                raise ValueError(
                    f"{where}: stands on another foundation than the first checkpoint ({place}.{name} differs); serve it by itself"
                )
            setattr(module, name, same)


def _tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def _plain(name: str) -> str:
    """A tensor's name without what PEFT puts around its layer."""
    return name.replace(".base_layer", "")
