"""An index of millions of samples is opened with little memory; `make drill PART=large_index` opens one of 10.8 million."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rb.data.examples import Examples
from rb.data.order import Arrangement
from tests.support.large_index import LARGEST_BYTES, NUM_SAMPLES, peak_bytes, write_large_set

SAMPLES = 400_000


@pytest.mark.parametrize("captions", [1, 6])
def test_memory_of_an_opened_index_is_a_few_bytes_a_sample(tmp_path: Path, captions: int) -> None:
    path = write_large_set(tmp_path / "set", SAMPLES, captions)
    for arrangement in (Arrangement(), Arrangement(4), Arrangement(4, "blocks", 256, 64)):
        assert peak_bytes(path, arrangement) < LARGEST_BYTES * SAMPLES / NUM_SAMPLES


@pytest.mark.parametrize("seed", range(3))
def test_examples_are_the_samples_with_a_first_caption(seed: int) -> None:
    captions = np.random.default_rng(seed).integers(0, 3 * seed + 1, 30_000).astype(np.uint32)
    captions[0] = 0
    found, right = Examples(captions), np.flatnonzero(captions == 0).tolist()
    assert len(found) == len(right)
    assert [found[number] for number in range(0, len(found), 7)] == right[::7]
    assert found[len(found) - 1] == right[-1]
    mixed = np.random.default_rng(seed).integers(0, len(found), 2000)
    assert found.samples(mixed).tolist() == [right[number] for number in mixed]
    assert found.samples(np.arange(0)).tolist() == []
    for outside in (-1, len(found)):
        with pytest.raises(IndexError, match=f"example {outside} of {len(found)}"):
            found[outside]
