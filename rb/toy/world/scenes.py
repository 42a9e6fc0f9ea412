"""The toy world: scenes of coloured solids in 64 x 64 images, and the same solids, uncoloured, as point clouds.

Pure functions of (seed, split, index): nothing is stored, every process gets the same scene. Their captions are here
too; whether a sentence is true is in rb/toy/world/truth.py, the raw data sets made of them in rb/toy/raw/data_sets.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rb.core import seeding
from rb.toy.world.solids import half_extent, paint, surface
from rb.toy.world.truth import MARGIN
from rb.toy.world.vocabulary import COLOURS, HORIZONTAL, SHAPES, SIZES, VERTICAL

IMAGE_SIZE = 64  # pixels, both ways
CLOUD_POINTS = 1024
_RADIUS = {"small": (4.6, 5.6), "big": (8.2, 9.6)}  # pixels
_CLOUD_RADIUS = {"small": (0.14, 0.17), "big": (0.26, 0.30)}  # of a table that is 2 wide, before the mesh's own unit
_REPEAT = 0.2  # share of objects made of the same kind as an earlier one, so that a caption must use size or position
_GAP = 1.0  # pixels between two objects
_WORDY = 0.75  # share of expressions with a position word they do not need


@dataclass(frozen=True)
class ToyObject:
    """One solid. Boxes are absolute: pixels xyxy of an image, or min xyz max xyz of a cloud in its raw unit."""

    object_id: str
    shape: str
    colour: str | None  # None in point clouds
    size: str
    box: tuple[float, ...]
    centre: tuple[float, ...]


@dataclass(frozen=True)
class ToyScene:
    """An image [64, 64, 3] uint8 and its 3-6 objects; ``seed`` also keys its captions."""

    scene_id: str
    split: str
    seed: int
    image: np.ndarray
    objects: tuple[ToyObject, ...]

    @property
    def width(self) -> int:
        """In pixels."""
        return int(self.image.shape[1])

    @property
    def height(self) -> int:
        """In pixels."""
        return int(self.image.shape[0])


@dataclass(frozen=True)
class ToyCloud:
    """Surface points [N, 3] float32 of 2-4 solids that stand on the plane of x and z (y is up), in a raw unit and at a raw offset."""

    cloud_id: str
    split: str
    seed: int
    points: np.ndarray
    objects: tuple[ToyObject, ...]


def make_scene(seed: int, split: str, index: int) -> ToyScene:
    """Scene ``index`` of a split."""
    rng = seeding.generator("toy scene", seed, split, index)
    scene_id = f"{split}-{index:06d}"
    colours = rng.choice(len(COLOURS), size=int(rng.integers(2, 4)), replace=False)
    wanted = int(rng.integers(3, 7))
    objects: list[ToyObject] = []
    for _ in range(400):
        if len(objects) == wanted:
            break
        shape, colour = SHAPES[int(rng.integers(3))], COLOURS[int(rng.choice(colours))]
        if objects and rng.random() < _REPEAT:
            model = objects[int(rng.integers(len(objects)))]
            shape, colour = model.shape, str(model.colour)
        size = SIZES[int(rng.random() < 0.45)]
        radius = float(rng.uniform(*_RADIUS[size]))
        x, y = rng.uniform(radius + 1, IMAGE_SIZE - radius - 1, size=2)
        half_w, half_h = half_extent(shape, radius)
        box = (float(x - half_w), float(y - half_h), float(x + half_w), float(y + half_h))
        if any(_touch(box, other.box) for other in objects):
            continue
        objects.append(ToyObject(f"{scene_id}-{len(objects)}", shape, colour, size, box, (float(x), float(y))))
    assert len(objects) >= 3, scene_id
    return ToyScene(
        scene_id,
        split,
        seed,
        paint([(o.shape, str(o.colour), o.box) for o in objects], IMAGE_SIZE, rng),
        tuple(objects),
    )


def make_cloud(seed: int, split: str, index: int, num_points: int = CLOUD_POINTS) -> ToyCloud:
    """Cloud ``index`` of a split: whole, as Objaverse has them; both sizes occur in each, as a cloud alone has no unit."""
    rng = seeding.generator("toy cloud", seed, split, index)
    cloud_id = f"{split}-{index:06d}"
    count = int(rng.integers(2, 5))
    sizes = [*SIZES, *(SIZES[int(k)] for k in rng.integers(2, size=count - 2))]
    placed: list[tuple[str, str, float, np.ndarray]] = []
    spread = 0.0
    while len(placed) < count:
        # The table grows until all solids fit.
        spread += 0.02
        size = sizes[len(placed)]
        radius = float(rng.uniform(*_CLOUD_RADIUS[size]))
        place = np.array([rng.uniform(-0.5 - spread, 0.5 + spread), radius, rng.uniform(-0.5 - spread, 0.5 + spread)])
        if all(np.hypot(*(place - other[3])[[0, 2]]) > 1.25 * (radius + other[2]) for other in placed):
            placed.append((SHAPES[int(rng.integers(3))], size, radius, place))
    areas = np.array([radius**2 for _, _, radius, _ in placed])
    # At least a tenth of the points each, so that a small solid beside three big ones is still seen.
    shares = 0.1 + (1 - 0.1 * count) * areas / areas.sum()
    edges = np.round(np.cumsum(shares) / shares.sum() * num_points).astype(int)
    unit, offset = float(np.exp(rng.uniform(np.log(0.3), np.log(30.0)))), rng.normal(size=3)
    points = np.empty((num_points, 3))
    objects = []
    for k, (shape, size, radius, place) in enumerate(placed):
        start = 0 if k == 0 else int(edges[k - 1])
        own = (surface(shape, int(edges[k]) - start, rng) * radius + place + offset) * unit
        points[start : int(edges[k])] = own
        half = np.array([*half_extent(shape, radius), half_extent(shape, radius)[0]])
        low, high = (place - half + offset) * unit, (place + half + offset) * unit
        box = tuple(float(v) for v in (*low, *high))
        centre = tuple(float(v) for v in (place + offset) * unit)
        objects.append(ToyObject(f"{cloud_id}-{k}", shape, None, size, box, centre))
    points += rng.normal(scale=0.004 * unit, size=points.shape)
    points = points[rng.permutation(num_points)].astype(np.float32)
    return ToyCloud(cloud_id, split, seed, points, tuple(objects))


def _touch(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] + _GAP and b[0] < a[2] + _GAP and a[1] < b[3] + _GAP and b[1] < a[3] + _GAP


def phrase(item: ToyObject, with_size: bool) -> str:
    """``a small red cube``; ``an`` before a vowel."""
    words = [item.size] if with_size else []
    words += ([item.colour] if item.colour else []) + [item.shape]
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"


def join(phrases: Sequence[str]) -> str:
    """``a, b and c``."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def whole_captions(scene: ToyScene, count: int = 5) -> list[str]:
    """Captions of the whole image: 2-3 of its objects each, from left to right (in random order a small model learns half as much)."""
    captions = []
    for k in range(count):
        rng = seeding.generator("toy whole caption", scene.seed, scene.scene_id, k)
        chosen = rng.choice(len(scene.objects), size=int(rng.integers(2, 4)), replace=False)
        ordered = sorted((scene.objects[int(i)] for i in chosen), key=lambda item: item.centre[0])
        captions.append(join([phrase(item, bool(rng.random() < 0.4)) for item in ordered]))
    return captions


def cloud_captions(cloud: ToyCloud, count: int = 4) -> list[str]:
    """Captions of a cloud: 2-3 of its solids each, big before small and then by shape: an order that turning the cloud keeps."""
    captions = []
    for k in range(count):
        rng = seeding.generator("toy cloud caption", cloud.seed, cloud.cloud_id, k)
        size = min(len(cloud.objects), int(rng.integers(2, 4)))
        chosen = [cloud.objects[int(i)] for i in rng.choice(len(cloud.objects), size=size, replace=False)]
        chosen.sort(key=lambda item: (-SIZES.index(item.size), SHAPES.index(item.shape)))
        captions.append(join([phrase(item, True) for item in chosen]))
    return captions


def region_expressions(scene: ToyScene, item: ToyObject, count: int = 3) -> list[str]:
    """What people would say to point at one object: the shortest that singles it out, often with a position word more than needed.

    ``red cube`` where it is the only one, else ``left red cube`` or ``small red cube``, else ``left small red cube``. Three of four
    expressions that need no position word carry one all the same (with fewer, greedy decoding drifts to the short form). Empty where no
    expression singles it out.
    """
    same_kind = [other for other in scene.objects if (other.shape, other.colour) == (item.shape, item.colour)]
    same_size = [other for other in same_kind if other.size == item.size]
    needed = len(same_kind) > 1
    place = _relative_place(item, same_kind) if needed else _absolute_place(scene, item)
    place_in_size = _relative_place(item, same_size) if len(same_size) > 1 else _absolute_place(scene, item)
    kind = f"{item.colour} {item.shape}"
    expressions = []
    for k in range(count):
        wordy = seeding.uniform("toy expression", scene.seed, item.object_id, k) < _WORDY
        if not needed:
            expressions.append(f"{place} {kind}" if place and wordy else kind)
        elif len(same_size) == 1 and not (place and wordy):
            # Size alone does it; beside it a position word would be one more than needed.
            expressions.append(
                f"{place_in_size} {item.size} {kind}" if place_in_size and wordy else f"{item.size} {kind}"
            )
        elif place:
            expressions.append(f"{place} {kind}")
        elif place_in_size:
            expressions.append(f"{place_in_size} {item.size} {kind}")
    return expressions


def _relative_place(item: ToyObject, rivals: Sequence[ToyObject]) -> str | None:
    """The side on which ``item`` lies of all its rivals by the margin; None if there is no such side."""
    for axis, (low, high) in ((0, HORIZONTAL), (1, VERTICAL)):
        others = [other.centre[axis] for other in rivals if other is not item]
        if item.centre[axis] + MARGIN <= min(others):
            return low
        if item.centre[axis] - MARGIN >= max(others):
            return high
    return None


def _absolute_place(scene: ToyScene, item: ToyObject) -> str | None:
    """The side of the image on which ``item`` lies by the margin; None in the middle."""
    for axis, side, (low, high) in ((0, scene.width, HORIZONTAL), (1, scene.height, VERTICAL)):
        if abs(item.centre[axis] - side / 2) >= MARGIN:
            return low if item.centre[axis] < side / 2 else high
    return None
