"""The tutorial's example data: 30 photos and ten made clouds with their caption tables, in the place of one's own.

`python docs/tutorial/example_data.py FOLDER`. The photos are 17 of scikit-image's example photos and 13 crops of them, as `photos.csv` beside
this file says (`source`, `crop`: x1 y1 x2 y2 in pixels); the captions are written by hand. `FOLDER/new.jpg` is a photo that has no caption.
"""

from __future__ import annotations

import csv
import math
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image
from plyfile import PlyData, PlyElement

HERE = Path(__file__).parent
NEW = "motorcycle_right.png"  # the right eye's view; the left eye's is among the 30
POINTS = 2000  # of a cloud
Solid = tuple[np.ndarray, tuple[int, int, int]]  # [N, 3] points, y upwards, and their colour


def ball(x: float, y: float, z: float, radius: float) -> np.ndarray:
    """Points on a sphere."""
    directions = RNG.normal(size=(POINTS, 3))
    return np.array([x, y, z]) + radius * directions / np.linalg.norm(directions, axis=1, keepdims=True)


def block(low: tuple[float, float, float], high: tuple[float, float, float]) -> np.ndarray:
    """Points on the six sides of a box."""
    unit = RNG.uniform(size=(POINTS, 3))
    sides = RNG.integers(0, 6, POINTS)
    unit[np.arange(POINTS), sides // 2] = sides % 2
    return np.array(low) + unit * (np.array(high) - np.array(low))


def turned(radius_below: float, radius_above: float, low: float, high: float) -> np.ndarray:
    """Points on the side of an upright cylinder or cone."""
    share, angle = RNG.uniform(size=POINTS), RNG.uniform(0, 2 * math.pi, POINTS)
    radius = radius_below + share * (radius_above - radius_below)
    return np.column_stack([radius * np.cos(angle), low + share * (high - low), radius * np.sin(angle)])


def ring(radius: float, thickness: float) -> np.ndarray:
    """Points on a torus that lies flat."""
    around, across = RNG.uniform(0, 2 * math.pi, (2, POINTS))
    reach = radius + thickness * np.cos(across)
    return np.column_stack([reach * np.cos(around), thickness * np.sin(across), reach * np.sin(around)])


def legs(height: float, colour: tuple[int, int, int]) -> list[Solid]:
    """Four legs below a top of 2 x 2."""
    return [
        (block((x - 0.1, 0, z - 0.1), (x + 0.1, height, z + 0.1)), colour) for x in (-0.9, 0.9) for z in (-0.9, 0.9)
    ]


RNG = np.random.default_rng(0)
BROWN, GREY, WHITE, RED, YELLOW, BLACK = (130, 80, 40), (128, 128, 128), (245, 245, 245), (210, 40, 40), (240, 220, 60), (20, 20, 20)  # fmt: skip
CLOUDS: dict[str, list[Solid]] = {
    "ball": [(ball(0, 0, 0, 1), RED)],
    "cube": [(block((-1, -1, -1), (1, 1, 1)), (40, 60, 200))],
    "cylinder": [(turned(0.5, 0.5, -1.5, 1.5), (40, 160, 60))],
    "cone": [(turned(1, 0, 0, 2), YELLOW)],
    "ring": [(ring(1, 0.25), (140, 40, 160))],
    "table": [(block((-1, 1.4, -1), (1, 1.5, 1)), BROWN), *legs(1.4, BROWN)],
    "chair": [(block((-1, 1, -1), (1, 1.1, 1)), GREY), (block((-1, 1.1, -1), (1, 2.6, -0.9)), GREY), *legs(1, GREY)],
    "mushroom": [(turned(0.3, 0.25, 0, 1), WHITE), (turned(1, 0.1, 1, 1.6), RED)],
    "lamp": [(turned(0.05, 0.05, 0, 2), BLACK), (turned(0.8, 0.3, 2, 2.8), YELLOW)],
    "snowman": [(ball(0, 0, 0, 1), WHITE), (ball(0, 1.5, 0, 0.7), WHITE), (ball(0, 2.6, 0, 0.45), WHITE)],
}


def write_cloud(path: Path, solids: list[Solid]) -> None:
    """A coloured ``.ply``, as scanners write it: an equal share of its points on each solid."""
    share = POINTS // len(solids)
    rows = [(*point, *colour) for points, colour in solids for point in points[:share]]
    kinds = [("x", "f4"), ("y", "f4"), ("z", "f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]
    PlyData([PlyElement.describe(np.array(rows, dtype=kinds), "vertex")]).write(str(path))


def main(out: Path) -> None:
    """Write everything into ``out``."""
    found = find_spec("skimage")
    if found is None or found.origin is None:
        sys.exit("the photos are in the package scikit-image: pip install scikit-image")
    given = Path(found.origin).parent / "data"
    for folder in ("photos", "clouds"):
        (out / folder).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(HERE / f"{folder}.csv", out / f"{folder}.csv")
    with (HERE / "photos.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            photo = Image.open(given / row["source"]).convert("RGB")
            box = [int(number) for number in row["crop"].split()] or [0, 0, *photo.size]
            photo.crop((box[0], box[1], box[2], box[3])).save(out / "photos" / row["file"], quality=92)
    Image.open(given / NEW).convert("RGB").save(out / "new.jpg", quality=92)
    for name, solids in CLOUDS.items():
        write_cloud(out / "clouds" / f"{name}.ply", solids)
    sys.stdout.write(f"{out}: 30 photos, 10 clouds, their captions in photos.csv and clouds.csv, and new.jpg\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
