"""What the toy pre-training stages learn from: a bank of views (scenes and crops of them), patch and cell targets, and the step loop.

A view is what the encoder sees: a scene, or a window of one blown up to the full image, so that a crop of one object is nothing new to it.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from rb.core import seeding
from rb.sources.pixels import decode_image
from rb.toy.world.scenes import IMAGE_SIZE, ToyScene, join, make_scene, phrase, whole_captions
from rb.toy.world.truth import MARGIN
from rb.toy.world.vocabulary import COLOURS, FACTS, SHAPES, SIZES

SEED = 0  # of the world that the foundation sees; the demo's worlds use other splits
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CROP_SHARE = 0.25
_MIN_VISIBLE = 0.5  # of an object's area, to count as being in a crop
_WORD_OF = {"small": 0, "big": 1}
IGNORE = -100


@dataclass(frozen=True)
class SeenObject:
    """An object of a view: class numbers, size ``IGNORE`` in crops (a crop has no scale), and its box in pixels of the view."""

    shape: int
    colour: int
    size: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class View:
    """An image [64, 64, 3] uint8, what is in it, its captions, and the fact list (empty for crops)."""

    image: np.ndarray
    seen: tuple[SeenObject, ...]
    captions: tuple[str, ...]
    facts: str


def scene_view(scene: ToyScene) -> View:
    """A whole scene, every second one through JPEG as the raw data sets store it."""
    image = scene.image
    if seeding.uniform("toy jpeg", scene.scene_id) < 0.5:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=92, subsampling=0)
        image = np.asarray(decode_image(stream.getvalue(), scene.scene_id))
    seen = tuple(
        SeenObject(SHAPES.index(o.shape), COLOURS.index(str(o.colour)), _WORD_OF[o.size], _box(o.box))
        for o in scene.objects
    )
    return View(image, seen, tuple(whole_captions(scene)), fact_list(scene))


def crop_view(scene: ToyScene, index: int) -> View:
    """A window around one object, 1 to 2.2 times its box (seldom wider), stretched to the full image as an image processor does."""
    rng = seeding.generator("toy crop", scene.seed, scene.scene_id, index)
    target = scene.objects[int(rng.integers(len(scene.objects)))]
    context = float(rng.choice((1.0, rng.uniform(1.0, 1.4), rng.uniform(1.4, 2.2), rng.uniform(2.2, 5.0))))
    x0, y0, x1, y1 = _box(target.box)
    half_w, half_h = (x1 - x0) / 2 * context, (y1 - y0) / 2 * context
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    # At context 1 a little jitter stands for boxes that people drew.
    jitter = rng.uniform(-0.06, 0.06, size=4) * (x1 - x0)
    window = np.array([cx - half_w, cy - half_h, cx + half_w, cy + half_h]) + jitter
    left, top = (max(0, math.floor(v)) for v in window[:2])
    right, bottom = (min(IMAGE_SIZE, math.ceil(v)) for v in window[2:])
    image = Image.fromarray(scene.image).crop((left, top, right, bottom))
    image = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    scale = np.array([IMAGE_SIZE / (right - left), IMAGE_SIZE / (bottom - top)] * 2)
    items, seen = [], []
    for item in scene.objects:
        a0, b0, a1, b1 = _box(item.box)
        c0, d0, c1, d1 = max(a0, left), max(b0, top), min(a1, right), min(b1, bottom)
        if c1 <= c0 or d1 <= d0 or (c1 - c0) * (d1 - d0) < _MIN_VISIBLE * (a1 - a0) * (b1 - b0):
            continue
        box = tuple(float(v) for v in (np.array([c0, d0, c1, d1]) - [left, top, left, top]) * scale)
        items.append(item)
        seen.append(SeenObject(SHAPES.index(item.shape), COLOURS.index(str(item.colour)), IGNORE, _box(box)))
    captions = []
    for _ in range(3):
        chosen = rng.permutation(len(items))[: int(rng.integers(2, 4))]
        ordered = sorted((items[int(i)] for i in chosen), key=lambda item: item.centre[0])
        captions.append(join([phrase(item, False) for item in ordered]))
    return View(np.asarray(image), tuple(seen), tuple(captions), "")


def fact_list(scene: ToyScene) -> str:
    """``facts small red cube top left, big blue ball right``: every object with its absolute place, from left to right."""
    facts = []
    for item in sorted(scene.objects, key=lambda o: o.centre[0]):
        x, y = item.centre[0] - scene.width / 2, item.centre[1] - scene.height / 2
        words = [
            word for word, far in ((_side(y, "top", "bottom"), y), (_side(x, "left", "right"), x)) if abs(far) >= MARGIN
        ]
        facts.append(f"{item.size} {item.colour} {item.shape} {' '.join(words or ['middle'])}")
    return f"{FACTS} {', '.join(facts)}"


def _side(value: float, low: str, high: str) -> str:
    return low if value < 0 else high


def _box(values: tuple[float, ...]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = values
    return x0, y0, x1, y1


def make_views(split: str, num_scenes: int) -> list[View]:
    """Scenes and, beside every few of them, crops: ``CROP_SHARE`` of all views."""
    views = []
    for i in tqdm(range(num_scenes), desc=f"toy scenes ({split})", file=sys.stderr):
        scene = make_scene(SEED, split, i)
        views.append(scene_view(scene))
        if seeding.uniform("toy crop of", split, i) < CROP_SHARE / (1 - CROP_SHARE):
            views.append(crop_view(scene, 0))
    return views


def to_pixels(images: Iterable[np.ndarray]) -> Tensor:
    """uint8 images to [B, 3, 64, 64] float32, normalised as CLIP's are."""
    stacked = torch.from_numpy(np.stack(list(images))).permute(0, 3, 1, 2).float() / 255
    return (stacked - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)


def patch_targets(view: View, patch: int) -> tuple[np.ndarray, np.ndarray]:
    """Per patch of the view: (shape, colour, size) [P, 3], the class after the last for background, and the object's box [P, 4] in [0, 1]."""
    side = IMAGE_SIZE // patch
    classes = np.tile(np.array([len(SHAPES), len(COLOURS), len(SIZES)]), (side * side, 1))
    boxes = np.zeros((side * side, 4), dtype=np.float32)
    best = np.full((side, side), 0.12 * patch * patch)  # less of an object than this leaves a patch background
    edges = np.arange(side) * patch
    for item in view.seen:
        x0, y0, x1, y1 = item.box
        wide = np.clip(np.minimum(edges + patch, x1) - np.maximum(edges, x0), 0, None)
        high = np.clip(np.minimum(edges + patch, y1) - np.maximum(edges, y0), 0, None)
        area = high[:, None] * wide[None, :]
        wins = (area > best).ravel()
        best = np.maximum(best, area)
        classes[wins] = (item.shape, item.colour, item.size)
        boxes[wins] = np.array(item.box) / IMAGE_SIZE
    return classes, boxes


def cell_targets(view: View, cells: int = 4) -> np.ndarray:
    """Per cell of a 4 x 4 grid the (shape, colour, size) [16, 3] of the object whose centre is nearest the cell's, background if none lies there."""
    targets = np.tile(np.array([len(SHAPES), len(COLOURS), len(SIZES)]), (cells * cells, 1))
    nearest = np.full(cells * cells, np.inf)
    width = IMAGE_SIZE / cells
    for item in view.seen:
        x, y = (item.box[0] + item.box[2]) / 2, (item.box[1] + item.box[3]) / 2
        column, row = min(cells - 1, int(x / width)), min(cells - 1, int(y / width))
        distance = math.hypot(x - (column + 0.5) * width, y - (row + 0.5) * width)
        cell = row * cells + column
        if distance < nearest[cell]:
            nearest[cell] = distance
            targets[cell] = (item.shape, item.colour, item.size)
    return targets


def train_steps(
    name: str,
    groups: list[tuple[list[nn.Parameter], float]],
    steps: int,
    loss_of: Callable[[int], Tensor],
    betas: tuple[float, float] = (0.9, 0.98),
) -> None:
    """AdamW over (parameters, rate) groups: warm-up over a twentieth, cosine to a twentieth, gradient norm clipped at 1."""
    optimizer = torch.optim.AdamW([{"params": p, "lr": lr} for p, lr in groups], betas=betas, weight_decay=0.01)
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warmup) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps))),
    )
    bar = tqdm(range(steps), desc=name, file=sys.stderr)
    smooth = 0.0
    for step in bar:
        loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for group, _ in groups for p in group], 1.0)
        optimizer.step()
        schedule.step()
        smooth = float(loss.detach()) if step == 0 else 0.95 * smooth + 0.05 * float(loss.detach())
        if step % 20 == 0:
            bar.set_postfix_str(f"loss {smooth:.3f}")


def batches(name: str, size: int, batch: int, step: int) -> np.ndarray:
    """Row numbers of one batch, a pure function of (stage, step): epochs of a permutation each."""
    per_epoch = size // batch
    epoch, place = divmod(step, per_epoch)
    order = seeding.generator("toy pretrain order", name, epoch).permutation(size)
    return order[place * batch : (place + 1) * batch]
