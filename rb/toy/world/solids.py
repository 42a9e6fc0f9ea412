"""The three solids of the toy world, drawn into images and sampled as surfaces. Knows no scene; used by rb/toy/world/scenes.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rb.toy.world.vocabulary import SHAPES

_RGB = {
    "red": (210, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 80, 215),
    "yellow": (225, 210, 50),
    "purple": (150, 55, 180),
    "orange": (240, 135, 30),
}
_SUPERSAMPLE = 2


def half_extent(shape: str, radius: float) -> tuple[float, float]:
    """Half width and half height of a solid of a radius."""
    assert shape in SHAPES, shape
    return {"cube": (0.88 * radius, 0.88 * radius), "ball": (radius, radius), "cone": (0.95 * radius, radius)}[shape]


def paint(solids: Sequence[tuple[str, str, tuple[float, ...]]], side: int, rng: np.random.Generator) -> np.ndarray:
    """The image [side, side, 3] uint8 of (shape, colour, box) each: a sloping grey ground, shaded solids, noise."""
    fine = side * _SUPERSAMPLE
    ys, xs = np.mgrid[0:fine, 0:fine].astype(np.float32) / _SUPERSAMPLE + 0.5 / _SUPERSAMPLE
    slope = rng.uniform(-0.4, 0.4, size=2)
    ground = rng.uniform(90, 165) + slope[0] * (xs - side / 2) + slope[1] * (ys - side / 2)
    canvas = np.repeat(ground[..., None], 3, axis=2)
    for shape, colour, (x0, y0, x1, y1) in solids:
        rows = slice(max(0, int(y0 * _SUPERSAMPLE) - 1), int(y1 * _SUPERSAMPLE) + 2)
        cols = slice(max(0, int(x0 * _SUPERSAMPLE) - 1), int(x1 * _SUPERSAMPLE) + 2)
        # u, v run from -1 to 1 over the box.
        u = (xs[rows, cols] - (x0 + x1) / 2) / ((x1 - x0) / 2)
        v = (ys[rows, cols] - (y0 + y1) / 2) / ((y1 - y0) / 2)
        inside, light = _shade(shape, u, v)
        rgb = np.array(_RGB[colour]) * rng.uniform(0.9, 1.08) + rng.uniform(-8, 8, size=3)
        canvas[rows, cols][inside] = (light[..., None] * rgb)[inside]
    pixels = canvas.reshape(side, _SUPERSAMPLE, side, _SUPERSAMPLE, 3).mean(axis=(1, 3))
    pixels += rng.normal(scale=6.0, size=pixels.shape)
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def _shade(shape: str, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which places of a box belong to a solid, and how light they are."""
    if shape == "ball":
        return u**2 + v**2 <= 1, 1.2 - 0.5 * ((u + 0.35) ** 2 + (v + 0.35) ** 2)
    if shape == "cube":
        light = np.where(v < -0.5, 1.25, np.where(u > 0.5, 0.65, 0.95))
        return (np.abs(u) <= 1) & (np.abs(v) <= 1), light
    return np.abs(u) <= (v + 1) / 2, 0.95 - 0.35 * u


def surface(shape: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Points [count, 3] on the surface of a solid of radius 1 around the origin, y up, uniform by area."""
    if shape == "ball":
        direction = rng.normal(size=(count, 3))
        return direction / np.linalg.norm(direction, axis=1, keepdims=True)
    half_w, half_h = half_extent(shape, 1.0)
    if shape == "cube":
        points = rng.uniform(-half_w, half_w, size=(count, 3))
        face, sign = rng.integers(3, size=count), rng.choice((-half_w, half_w), size=count)
        points[np.arange(count), face] = sign
        return points
    # A cone: its side by area is denser towards the base (square root), its base a disc.
    angle, reach = rng.uniform(0, 2 * np.pi, size=count), np.sqrt(rng.random(count))
    slant = np.hypot(half_w, 2 * half_h)
    on_side = rng.random(count) < slant / (slant + half_w)
    y = np.where(on_side, half_h - 2 * half_h * reach, -half_h)
    return np.stack([half_w * reach * np.cos(angle), y, half_w * reach * np.sin(angle)], axis=1)
