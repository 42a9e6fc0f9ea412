"""Which other box each region gets when boxes are shuffled: a control for whether a model looks where its box points.

A model that ignores its box says the same with another box of the same source; one that reads it speaks of the other object. Used by
prediction jobs (``rb predict --shuffle-boxes``). Reads the index only, no shard.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rb.core.seeding import generator
from rb.data.index import ManifestReader


@dataclass(frozen=True)
class ShuffledBoxes:
    """Which box each example gets.

    Attributes:
        box_of: example to the object (its number in the record); every box of a source is given once, never to its own object.
        num_single: examples whose source has no other region; they have no place in ``box_of``.
    """

    box_of: dict[int, int]
    num_single: int


def shuffle_boxes(reader: ManifestReader, seed: int = 0) -> ShuffledBoxes:
    """Another box of its own source for every example of a manifest of regions; the same for the same seed and manifest.

    Raises:
        ValueError: the manifest holds no regions, or no source has two.
    """
    samples = reader.index.samples
    rows = samples[samples["caption"] == 0]  # the examples, in their order
    if (rows["object"] < 0).any():
        raise ValueError(f"{reader.path}: holds whole sources, so there are no boxes to shuffle; give regions")
    box_of: dict[int, int] = {}
    for record in np.unique(rows["record"]):
        examples = np.flatnonzero(rows["record"] == record)
        if len(examples) > 1:
            order = generator("shuffled boxes", seed, reader.index.source_id(int(record))).permutation(examples)
            for example, other in zip(order, np.roll(order, 1), strict=True):
                box_of[int(example)] = int(rows["object"][other])
    if not box_of:
        raise ValueError(f"{reader.path}: no source has two regions, so there is no other box to give")
    return ShuffledBoxes(box_of, len(rows) - len(box_of))
