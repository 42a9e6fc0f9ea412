"""Pre-training of the toy Point-BERT: every group of points must tell shape, size and place of the solid it lies on (heads thrown away).

Clouds are grouped once (a turn about y commutes with the grouping) and turned anew in every batch.
"""

from __future__ import annotations

import sys
from dataclasses import asdict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from rb.core import seeding
from rb.model.point_encoder import PointBert, PointBertConfig
from rb.toy.pretrain_data import SEED, batches, train_steps
from rb.toy.vocabulary import SHAPES, SIZES
from rb.toy.world import ToyCloud, make_cloud

BATCH = 32
NUM_POINTS = 768
_PLACE_WEIGHT = 4.0
_CLASSES = (len(SHAPES), len(SIZES))
_PLACE = 5  # centre xyz, half width, half height


def point_config() -> PointBertConfig:
    """Sizes of the toy Point-BERT: 48 groups of 16 of 768 points."""
    return PointBertConfig(trans_dim=96, depth=3, num_heads=4, group_size=16, num_group=48, encoder_dims=96)


def config_tree() -> dict[str, int]:
    """``config.json`` of the shipped folder."""
    tree = asdict(point_config())
    tree.pop("skip_near_origin")
    return tree


class _Grouped(PointBert):
    """Reads clouds that are grouped already: [B, G, 3 + 3K], the centre first, then the patch."""

    def group(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return points[..., :3], points[..., 3:].unflatten(-1, (self.config.group_size, 3))


def _prepare(cloud: ToyCloud, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Points [768, 3] in the cloud's frame, some with dropout; classes, centres and half extents of the solids."""
    rng = seeding.generator("toy point view", cloud.cloud_id, index)
    middle = cloud.points.mean(0, dtype=np.float64)
    radius = np.linalg.norm(cloud.points - middle, axis=1).max()
    points = ((cloud.points - middle) / radius)[rng.permutation(len(cloud.points))[:NUM_POINTS]]
    if rng.random() < 0.5:  # ULIP's dropout: lost points fall on the first one
        points[rng.random(len(points)) < rng.random() * 0.6] = points[0]
    classes = np.array([[SHAPES.index(o.shape), SIZES.index(o.size)] for o in cloud.objects])
    boxes = np.array([o.box for o in cloud.objects])
    centres = ((boxes[:, :3] + boxes[:, 3:]) / 2 - middle) / radius
    half = (boxes[:, 3:] - boxes[:, :3])[:, :2] / 2 / radius
    return points.astype(np.float32), classes, centres, half


def make_groups(split: str, count: int, grouper: PointBert) -> tuple[Tensor, Tensor, Tensor]:
    """Grouped clouds [n, G, 3 + 3K], classes [n, G, 2], places [n, G, 5]; a group belongs to the solid nearest its centre."""
    rows, classes, places = [], [], []
    for i in tqdm(range(count), desc=f"toy clouds ({split})", file=sys.stderr):
        points, kinds, centres, half = _prepare(make_cloud(SEED, split, i), i)
        group_centres, patches = grouper.group(torch.from_numpy(points)[None])
        rows.append(torch.cat([group_centres[0], patches[0].flatten(1)], dim=1))
        distance = np.linalg.norm(group_centres[0].numpy()[:, None] - centres[None], axis=-1) / half.max(1)[None]
        owner = distance.argmin(1)
        classes.append(torch.from_numpy(kinds[owner]))
        places.append(torch.from_numpy(np.concatenate([centres, half], axis=1)[owner]).float())
    return torch.stack(rows), torch.stack(classes), torch.stack(places)


def turn(grouped: Tensor, places: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A full random turn about y and a scale of 0.85 to 1.15 for each cloud; solids keep their extents but for the scale."""
    angle = torch.from_numpy(rng.uniform(0, 2 * np.pi, size=len(grouped))).float()
    scale = torch.from_numpy(rng.uniform(0.85, 1.15, size=(len(grouped), 1, 1))).float()
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    matrix = torch.stack([cos, zero, sin, zero, one, zero, -sin, zero, cos], dim=1).view(-1, 3, 3)
    turned = torch.einsum("bgkc,bdc->bgkd", grouped.unflatten(-1, (-1, 3)), matrix).flatten(2)
    centres = torch.einsum("bgc,bdc->bgd", places[..., :3], matrix)
    return turned * scale, torch.cat([centres, places[..., 3:]], dim=-1) * scale


def train_points(steps: int, num_clouds: int) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Point-BERT's state dict (own names) and its scores on held-out clouds."""
    torch.manual_seed(4)
    config = point_config()
    model, head = _Grouped(config, trainable_batchnorm=True), nn.Linear(config.trans_dim, sum(_CLASSES) + _PLACE)
    grouper = PointBert(config)
    grouped, classes, places = make_groups("pretrain", num_clouds, grouper)

    def loss_of(step: int) -> Tensor:
        rows = torch.from_numpy(batches("points", num_clouds, BATCH, step))
        clouds, targets = turn(grouped[rows], places[rows], seeding.generator("toy turn", step))
        shape, size, place = head(model(clouds)[:, 1:]).split([*_CLASSES, _PLACE], dim=-1)
        return (
            F.cross_entropy(shape.flatten(0, 1), classes[rows][..., 0].flatten())
            + F.cross_entropy(size.flatten(0, 1), classes[rows][..., 1].flatten())
            + _PLACE_WEIGHT * (place - targets).abs().mean()
        )

    train_steps("point encoder", [([*model.parameters(), *head.parameters()], 2e-3)], steps, loss_of)
    model.eval()
    grouped, classes, places = make_groups("pretrain-held-out", 100, grouper)
    with torch.no_grad():
        shape, size, place = head(model(grouped)[:, 1:]).split([*_CLASSES, _PLACE], dim=-1)
    scores = {
        "shape": float((shape.argmax(-1) == classes[..., 0]).float().mean()),
        "size": float((size.argmax(-1) == classes[..., 1]).float().mean()),
        "place_error": float((place - places).abs().mean()),
    }
    return {name: value.detach().clone() for name, value in model.state_dict().items()}, scores
