"""The examples of the page are scenes of the toy world, which this file makes again, and what stands in a room is found by the page's own code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from rb.serving import page_files
from rb.sources.cloud_files import read_cloud
from rb.sources.pixels import decode_upright
from rb.toy.world.rooms import ToyRoom, make_room
from rb.toy.world.scenes import make_cloud, make_scene

PAGE = Path(page_files.__file__).parent / "page"
ROOM_POINTS = 4096
ROOM = 10  # the toy room that is shipped


def room(index: int = ROOM) -> ToyRoom:
    return make_room(0, "page", index, ROOM_POINTS)


def made() -> dict[str, np.ndarray]:
    """Name -> pixels or points of each example."""
    scenes = {f"scene_{number}.png": make_scene(0, "page", number).image for number in (1, 2)}
    return scenes | {"room.npy": room().points, "objects.npy": make_cloud(0, "page", 1).points.astype(np.float32)}


def write(folder: Path) -> None:
    """The files, as they are in the package."""
    for name, array in made().items():
        if name.endswith(".png"):
            Image.fromarray(array).save(folder / name, optimize=True)
        else:
            np.save(folder / name, array)


def test_they_are_the_toy_world_s() -> None:
    assert set(made()) == set(page_files.EXAMPLES)
    for name, array in made().items():
        path = PAGE / "examples" / name
        there = (
            np.asarray(decode_upright(path.read_bytes(), name)[0]) if name.endswith(".png") else read_cloud(path).points
        )
        np.testing.assert_array_equal(there, array)
