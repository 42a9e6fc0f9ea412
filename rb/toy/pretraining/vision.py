"""Pre-training of the toy ViT: every patch must predict shape, colour, size and box of the object in it (heads thrown away afterwards).

With captions alone so small an encoder learns almost nothing; see rb/toy/foundation/README.md.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Blip2VisionConfig, Blip2VisionModel

from rb.toy.pretraining.data import IGNORE, make_views, patch_targets, to_pixels, train_steps
from rb.toy.pretraining.data import batches as batch_rows
from rb.toy.world.scenes import IMAGE_SIZE
from rb.toy.world.vocabulary import COLOURS, SHAPES, SIZES

BATCH = 64
_BACKGROUND_WEIGHT = 0.25
_BOX_WEIGHT = 4.0
_CLASSES = (len(SHAPES) + 1, len(COLOURS) + 1, len(SIZES) + 1)


def vision_config() -> Blip2VisionConfig:
    """Sizes of the toy ViT. ``initializer_range`` is 1e-10 by default: a model built from a config would start at zero."""
    return Blip2VisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=8,
        initializer_range=0.02,
    )


def dense_loss(logits: Tensor, classes: Tensor, boxes: Tensor) -> Tensor:
    """Cross-entropy of three classes and L1 of a box per place: logits [B, P, classes + 4], classes [B, P, 3], boxes [B, P, 4]."""
    parts = logits.split([*_CLASSES, boxes.shape[-1]], dim=-1)
    full = classes[..., 0] != _CLASSES[0] - 1  # [B, P]
    weight = torch.where(full, 1.0, _BACKGROUND_WEIGHT)
    total = logits.new_zeros(())
    for k in range(3):
        loss = F.cross_entropy(parts[k].flatten(0, 1), classes[..., k].flatten(), reduction="none", ignore_index=IGNORE)
        total = total + (loss * weight.flatten()).sum() / weight.sum()
    distance = (parts[3] - boxes).abs().mean(-1) * full
    return total + _BOX_WEIGHT * distance.sum() / full.sum().clamp(min=1)


def train_vision(steps: int, num_scenes: int) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The ViT's state dict and its scores on held-out views."""
    torch.manual_seed(1)
    model, head = Blip2VisionModel(vision_config()), nn.Linear(128, sum(_CLASSES) + 4)
    views = make_views("pretrain", num_scenes)
    targets = [patch_targets(view, 8) for view in views]

    def loss_of(step: int) -> Tensor:
        rows = batch_rows("vision", len(views), BATCH, step)
        classes = torch.from_numpy(np.stack([targets[i][0] for i in rows]))
        boxes = torch.from_numpy(np.stack([targets[i][1] for i in rows]))
        hidden = model(to_pixels(views[i].image for i in rows)).last_hidden_state[:, 1:]
        return dense_loss(head(hidden), classes, boxes)

    train_steps("vision encoder", [([*model.parameters(), *head.parameters()], 1e-3)], steps, loss_of)
    held_out = make_views("pretrain-held-out", 200)
    with torch.no_grad():
        logits = head(model(to_pixels(v.image for v in held_out)).last_hidden_state[:, 1:])
    classes = torch.from_numpy(np.stack([patch_targets(v, 8)[0] for v in held_out]))
    boxes = torch.from_numpy(np.stack([patch_targets(v, 8)[1] for v in held_out]))
    parts = logits.split([*_CLASSES, 4], dim=-1)
    full = classes[..., 0] != _CLASSES[0] - 1
    scores = {}
    for k, name in enumerate(("shape", "colour", "size")):
        counted = full & (classes[..., k] != IGNORE)
        scores[name] = float((parts[k].argmax(-1) == classes[..., k])[counted].float().mean())
    scores["box_error_px"] = float((parts[3] - boxes)[full].abs().mean()) * IMAGE_SIZE
    return {name: value.detach().clone() for name, value in model.state_dict().items()}, scores
