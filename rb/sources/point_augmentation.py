"""How clouds are augmented: motions of objects and of scenes, and dropped points. Ranges: the released code's (ULIP's); the draws come from outside.

`points.py` moves a cloud and its boxes by them; mirrors are drawn by ``rb/data/mirrors.py``, which knows the caption.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_DROPOUT = 0.875
SCALE_RANGE = (0.8, 1.25)
MAX_SHIFT = 0.1
TILT_STD, MAX_TILT = 0.06, 0.18  # radians
MAX_SCENE_TURN = np.deg2rad(5.0)


def _rotation(axis: int, angle: float) -> NDArray[np.float64]:
    """[3, 3], a right-handed turn about one axis (0 x, 1 y, 2 z)."""
    a, b = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3)
    matrix[a, a] = matrix[b, b] = np.cos(angle)
    matrix[a, b], matrix[b, a] = -np.sin(angle), np.sin(angle)
    return matrix


def object_motion(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Augmentation of objects as x -> matrix @ x + offset: scale, shift, small tilt about all axes, full turn about y, in this order."""
    scale = rng.uniform(*SCALE_RANGE)
    shift = rng.uniform(-MAX_SHIFT, MAX_SHIFT, 3)
    tilt = np.clip(rng.normal(0.0, TILT_STD, 3), -MAX_TILT, MAX_TILT)
    turn = _rotation(1, rng.uniform(0.0, 2.0 * np.pi))
    turned = turn @ _rotation(2, tilt[2]) @ _rotation(1, tilt[1]) @ _rotation(0, tilt[0])
    return turned * scale, turned @ shift


def scene_motion(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Augmentation of scenes as x -> matrix @ x + offset: up to 5 degrees about z."""
    return _rotation(2, rng.uniform(-MAX_SCENE_TURN, MAX_SCENE_TURN)), np.zeros(3)


def drop_points(points: NDArray[np.floating], rng: np.random.Generator, fill: str = "first") -> NDArray[np.floating]:
    """A random share of up to 0.875 of the points dropped; others take their place, so that the number of points stays.

    Args:
        fill: ``first``: the first one, whether it stays or not; ``kept``: the points that stay, each as often (``data.dropped_points``).
    """
    dropped = rng.random(len(points)) < rng.uniform(0.0, MAX_DROPOUT)
    if fill == "first" or dropped.all():
        return np.where(dropped[:, None], points[:1], points)
    stay, gone = np.flatnonzero(~dropped), np.flatnonzero(dropped)
    filled = points.copy()
    filled[gone] = points[stay[np.arange(len(gone)) * len(stay) // max(len(gone), 1)]]
    return filled
