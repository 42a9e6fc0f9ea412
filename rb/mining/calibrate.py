"""The threshold of the filter for another text encoder: from captions of which it is known whether they speak of the same thing.

Two captions of one object are a pair of the same thing; captions of two objects of one image are a pair of different things. Pairs are compared as
the filter does it: the best cosine of their noun chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from rb.core.urls import Location
from rb.data.formats import find_manifest, read_manifest, require_captions
from rb.data.tars import scan_shard
from rb.mining.chunks import Chunker
from rb.mining.config import FilterConfig, Threshold
from rb.mining.encoders import TextEncoder, encoder_digest, encoder_name

FEWEST = 50  # pairs of each kind


@dataclass(frozen=True)
class Pair:
    """Two captions, and whether they speak of one thing."""

    first: str
    second: str
    same: bool


@dataclass(frozen=True)
class Calibration:
    """A threshold, and what it does on the pairs it was found with.

    Attributes:
        same, different: pairs of each kind with a noun chunk in both captions.
        same_kept, different_kept: share of them above the threshold.
    """

    threshold: Threshold
    same: int
    different: int
    same_kept: float
    different_kept: float


def pairs_of_set(place: Location | str, most: int) -> list[Pair]:
    """The first ``most`` pairs of each kind from a set of image regions.

    Raises:
        ValueError: no such set, or a set of questions.
    """
    path = find_manifest(place)
    manifest = read_manifest(path)
    require_captions(manifest, path)
    found: dict[bool, list[Pair]] = {True: [], False: []}
    for entry in manifest.shards:
        for record in scan_shard(Path(str(path.parent / entry.file))):
            for pair in _pairs([item.captions for item in record.record.objects]):
                if len(found[pair.same]) < most:
                    found[pair.same].append(pair)
            if all(len(pairs) >= most for pairs in found.values()):
                return found[True] + found[False]
    return found[True] + found[False]


def _pairs(objects: Sequence[Sequence[str]]) -> Iterator[Pair]:
    for captions in objects:
        for first, second in combinations(dict.fromkeys(captions), 2):
            yield Pair(first, second, True)
    for one, other in combinations([captions for captions in objects if captions], 2):
        yield Pair(one[0], other[0], False)


def calibrate(
    pairs: Sequence[Pair], chunker: Chunker, encoder: TextEncoder, config: FilterConfig, most_wrong: float
) -> Calibration:
    """The smallest threshold above which at most ``most_wrong`` of the pairs of different things lie.

    Raises:
        ValueError: too few pairs.
    """
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.first, pair.second)))
    chunks = dict(zip(texts, chunker.chunks(texts, config.stop), strict=True))
    found: dict[bool, list[float]] = {True: [], False: []}
    for pair in pairs:
        first, second = chunks[pair.first], chunks[pair.second]
        if first and second:
            found[pair.same].append(float((encoder.encode(first) @ encoder.encode(second).T).max()))
    if min(map(len, found.values())) < FEWEST:
        raise ValueError(
            f"{len(found[True])} pairs of captions of one object and {len(found[False])} of two, {FEWEST} of each are needed: "
            "give a larger set of regions, with several captions of an object"
        )
    same, different = (np.sort(found[kind]) for kind in (True, False))
    # The filter keeps what is above the threshold, so the value itself may be that of a pair; rounded up to what a file shows.
    passed = int(most_wrong * len(different))
    value = min(float(np.ceil(different[len(different) - 1 - passed] * 1000) / 1000), 1.0)
    return Calibration(
        Threshold(value, encoder_name(config.encoder), encoder_digest(config.encoder)),
        len(same),
        len(different),
        float((same > value).mean()),
        float((different > value).mean()),
    )
