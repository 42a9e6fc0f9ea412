"""Pre-training of the toy Point-BERT: every group of points must predict shape, size and place of the solid it lies on (heads thrown away).

Half of the inputs are clouds (y up), half rooms (z up, with floor and walls). In rooms a group must also predict which clauses are true
of its solid's place, and of which other solids they are true too.
Both are grouped once (a turn about the axis that is up commutes with the grouping) and turned again in every batch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from rb.core import seeding
from rb.model.point_encoder import PointBert, PointBertConfig
from rb.toy.pretraining.data import SEED, batches, train_steps
from rb.toy.world.room_truth import RELATIONS, SIDES, WALLS, Clause, clause_margin
from rb.toy.world.rooms import FLOOR, WALL, ToyRoom, make_room, room_truth
from rb.toy.world.scenes import ToyCloud, make_cloud
from rb.toy.world.vocabulary import SHAPES, SIZES

BATCH = 32
NUM_POINTS = 768
_PLACE_WEIGHT = 4.0
_CLASSES = (len(SHAPES) + 2, len(SIZES))  # floor and wall are shapes too
_PLACE = 6  # centre xyz, half extents xyz
_WORDS = tuple(Clause(kind) for kind in (*WALLS, *SIDES))  # clauses about a place that need no other solid
_BESIDE = tuple(Clause(kind, None, shape) for kind in RELATIONS for shape in SHAPES)
_FACTS = 2 * len(_WORDS) + len(_BESIDE) + 2
_FACTS_WEIGHT = 2.0
_IGNORE = -100
_UP = {"cloud": 1, "room": 2}  # the axis
_MAX_TURN = {"cloud": np.pi, "room": np.deg2rad(10)}  # a room keeps its left and right


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


@dataclass(frozen=True)
class GroupedClouds:
    """n grouped clouds or rooms: [n, G, 3 + 3K]; of each group's owner the classes [n, G, 2], place [n, G, 6] and facts [n, G, _FACTS].

    Floor and walls have a shape only; facts are of rooms only. What is not there is ``_IGNORE``, or not counted.
    """

    kind: str
    groups: Tensor
    classes: Tensor
    places: Tensor
    facts: Tensor

    def batch(self, rows: Tensor, rng: np.random.Generator) -> GroupedClouds:
        """Some rows, each turned about the axis that is up and scaled by 0.85 to 1.15; solids keep their extents but for the scale."""
        angle = torch.from_numpy(rng.uniform(-1, 1, size=len(rows)) * _MAX_TURN[self.kind]).float()
        scale = torch.from_numpy(rng.uniform(0.85, 1.15, size=(len(rows), 1, 1))).float()
        cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
        about_y = [cos, zero, sin, zero, one, zero, -sin, zero, cos]
        about_z = [cos, -sin, zero, sin, cos, zero, zero, zero, one]
        matrix = torch.stack(about_y if _UP[self.kind] == 1 else about_z, dim=1).view(-1, 3, 3)
        turned = torch.einsum("bgkc,bdc->bgkd", self.groups[rows].unflatten(-1, (-1, 3)), matrix).flatten(2)
        centres = torch.einsum("bgc,bdc->bgd", self.places[rows][..., :3], matrix)
        places = torch.cat([centres, self.places[rows][..., 3:]], dim=-1) * scale
        return GroupedClouds(self.kind, turned * scale, self.classes[rows], places, self.facts[rows])


def make_seen(kind: str, split: str, count: int, grouper: PointBert) -> GroupedClouds:
    """Grouped clouds or rooms of a split. A group belongs to what most of its points lie on."""
    make = make_cloud if kind == "cloud" else make_room
    rows = [_seen_row(make(SEED, split, i), kind, i, grouper) for i in tqdm(range(count), f"toy {kind}s ({split})")]
    groups, classes, places, facts = (torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))
    return GroupedClouds(kind, groups, classes, places, facts)


def _seen_row(scene: ToyCloud | ToyRoom, kind: str, index: int, grouper: PointBert) -> tuple[np.ndarray, ...]:
    rng = seeding.generator("toy point view", kind, index)
    middle = scene.points.mean(0, dtype=np.float64)
    radius = np.linalg.norm(scene.points - middle, axis=1).max()
    kept = rng.permutation(len(scene.points))[:NUM_POINTS]
    points = ((scene.points - middle) / radius)[kept].astype(np.float32)
    boxes = np.array([item.box for item in scene.objects])
    centres = ((boxes[:, :3] + boxes[:, 3:]) / 2 - middle) / radius
    half = (boxes[:, 3:] - boxes[:, :3]) / 2 / radius
    classes = np.array([[SHAPES.index(item.shape), SIZES.index(item.size)] for item in scene.objects])
    facts = np.full((len(scene.objects), _FACTS), _IGNORE)
    if isinstance(scene, ToyRoom):
        facts = np.concatenate([np.full((2, _FACTS), _IGNORE), _room_facts(room_truth(scene))])
        rest = np.array([[len(SHAPES) + k, _IGNORE] for k in (FLOOR, WALL)])
        classes = np.concatenate([rest, classes])
        centres, half = (np.concatenate([np.zeros((2, 3)), values]) for values in (centres, half))
        owner_of = scene.instances[kept]
    else:
        if rng.random() < 0.5:  # ULIP's dropout: lost points fall on the first one
            points[rng.random(len(points)) < rng.random() * 0.6] = points[0]
        distance = np.linalg.norm(points[:, None] - centres[None], axis=-1) / half.max(1)[None]
        owner_of = distance.argmin(1)
    group_centres, patches = grouper.group(torch.from_numpy(points)[None])
    absolute = (patches[0] + group_centres[0][:, None]).flatten(0, 1).numpy()
    nearest = np.linalg.norm(absolute[:, None] - points[None], axis=-1).argmin(1)
    votes = owner_of[nearest].reshape(len(group_centres[0]), -1)
    owner = np.array([np.bincount(vote, minlength=len(classes)).argmax() for vote in votes])
    grouped = torch.cat([group_centres[0], patches[0].flatten(1)], dim=1).numpy()
    places = np.concatenate([centres, half], axis=1)[owner].astype(np.float32)
    return grouped, classes[owner], places, facts[owner]


def _room_facts(truth: dict[str, Any]) -> np.ndarray:
    """Of each solid, 0 or 1: which clauses are true of its place, alone and relative to others; which of them are true of another of its shape too.

    Between the two: whether there is another of its shape, and of its shape and size.
    """
    rows = []
    for item in truth["objects"]:
        others = [o for o in truth["objects"] if o is not item and o["shape"] == item["shape"]]
        held = [clause_margin(clause, item, truth) >= 0 for clause in (*_WORDS, *_BESIDE)]
        shared = [any(clause_margin(word, other, truth) >= 0 for other in others) for word in _WORDS]
        rows.append([*held, bool(others), any(o["size"] == item["size"] for o in others), *shared])
    return np.array(rows, dtype=int)


def _loss(logits: Tensor, seen: GroupedClouds) -> Tensor:
    shape, size, place, facts = logits.split([*_CLASSES, _PLACE, _FACTS], dim=-1)
    solid = (seen.classes[..., 0] < len(SHAPES)).float()
    distance = ((place - seen.places).abs().mean(-1) * solid).sum() / solid.sum()
    total = F.cross_entropy(shape.flatten(0, 1), seen.classes[..., 0].flatten())
    total = total + F.cross_entropy(size.flatten(0, 1), seen.classes[..., 1].flatten(), ignore_index=_IGNORE)
    if seen.kind == "room":
        known = (seen.facts != _IGNORE).float()
        each = F.binary_cross_entropy_with_logits(facts, seen.facts.clamp(min=0).float(), reduction="none")
        total = total + _FACTS_WEIGHT * (each * known).sum() / known.sum()
    return total + _PLACE_WEIGHT * distance


def train_points(steps: int, num_clouds: int) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Point-BERT's state dict (own names) and its scores on held-out clouds and rooms; ``num_clouds`` of each are learned from."""
    torch.manual_seed(4)
    config = point_config()
    model = _Grouped(config, trainable_batchnorm=True)
    head = nn.Linear(config.trans_dim, sum(_CLASSES) + _PLACE + _FACTS)
    grouper = PointBert(config)
    banks = [make_seen(kind, "pretrain", num_clouds, grouper) for kind in _UP]

    def loss_of(step: int) -> Tensor:
        rows = torch.from_numpy(batches("points", num_clouds, BATCH // 2, step))
        halves = [bank.batch(rows, seeding.generator("toy turn", bank.kind, step)) for bank in banks]
        # One pass over both: BatchNorm must see what it will be used on.
        logits = head(model(torch.cat([half.groups for half in halves]))[:, 1:]).split(BATCH // 2)
        return torch.stack([_loss(own, half) for own, half in zip(logits, halves, strict=True)]).mean()

    train_steps("point encoder", [([*model.parameters(), *head.parameters()], 2e-3)], steps, loss_of)
    model.eval()
    scores: dict[str, float] = {}
    for kind in _UP:
        seen = make_seen(kind, "pretrain-held-out", 100, grouper)
        with torch.no_grad():
            shape, size, place, facts = head(model(seen.groups)[:, 1:]).split([*_CLASSES, _PLACE, _FACTS], dim=-1)
        solid, known = seen.classes[..., 0] < len(SHAPES), seen.facts != _IGNORE
        scores[f"{kind}_shape"] = float((shape.argmax(-1) == seen.classes[..., 0]).float().mean())
        scores[f"{kind}_size"] = float((size.argmax(-1) == seen.classes[..., 1])[solid].float().mean())
        scores[f"{kind}_place_error"] = float((place - seen.places).abs()[solid].mean())
        if kind == "room":
            right = ((facts > 0) == (seen.facts > 0)).float()
            scores["room_words"] = float(right[..., : len(_WORDS)][known[..., : len(_WORDS)]].mean())
            scores["room_facts"] = float(right[known].mean())
            scores["room_solid_shape"] = float((shape.argmax(-1) == seen.classes[..., 0])[solid].float().mean())
    return {name: value.detach().clone() for name, value in model.state_dict().items()}, scores
