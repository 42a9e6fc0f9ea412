"""The order of samples: exact epochs, groups of one record, blocks and windows, all as a pure function of the position."""

from __future__ import annotations

import math
import pickle
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rb.core.config import DataConfig
from rb.core.modality import IMAGE, IMAGE_REGION, POINT_CLOUD
from rb.data.groups import Groups, UnsortedError
from rb.data.order import Arrangement, Place, Stream
from rb.data.permutation import permute, permute_all, shuffled

Counts = Sequence[int]


def records_of(counts: Counts) -> np.ndarray:
    """The column of the index: the record of every sample, where record i has ``counts[i]``."""
    return np.repeat(np.arange(len(counts), dtype=np.uint32), counts)


def stream_of(sets: Sequence[Counts], repeats: Sequence[int], arrangement: Arrangement, seed: int = 3) -> Stream:
    columns = [records_of(counts) for counts in sets]
    groups = [arrangement.groups(column) for column in columns] if arrangement.needs_groups else []
    return Stream(IMAGE, [len(column) for column in columns], repeats, seed, arrangement, groups)


def epoch_of(stream: Stream, epoch: int) -> list[Place]:
    return [stream.locate(epoch * len(stream) + turn) for turn in range(len(stream))]


counts = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any)
arrangements = st.builds(
    Arrangement,
    st.sampled_from([1, 2, 4, 300]),
    st.sampled_from(["full", "blocks"]),
    st.integers(1, 5),
    st.integers(1, 4),
)


@settings(max_examples=50)
@given(st.lists(st.tuples(counts, st.integers(1, 2)), min_size=1, max_size=3), arrangements, st.integers(0, 5))
def test_an_epoch_shows_each_sample_as_often_as_asked_in_whole_groups(
    sets, arrangement: Arrangement, epoch: int
) -> None:
    shown, repeats = [one for one, _ in sets], [repeat for _, repeat in sets]
    stream = stream_of(shown, repeats, arrangement)
    places = epoch_of(stream, epoch)
    seen = Counter((place.manifest, place.sample) for place in places)
    assert seen == {(m, s): repeats[m] for m, one in enumerate(shown) for s in range(sum(one))}
    groups = {place.group_start: (place.manifest, place.group) for place in places}
    assert len(groups) == stream.num_groups
    n = arrangement.group_by_source
    assert stream.num_groups == sum(r * -(-c // n) for one, r in zip(shown, repeats, strict=True) for c in one)
    for turn, place in enumerate(places):
        position = epoch * len(stream) + turn
        assert place.epoch == epoch
        assert place.group[position - place.group_start] == place.sample
        assert groups[place.group_start] == (place.manifest, place.group)
        assert len({records_of(shown[place.manifest])[sample] for sample in place.group}) == 1
        assert len(place.group) <= n
    for manifest, one in enumerate(shown):
        for record, samples in enumerate(one):
            sizes = [len(g) for m, g in groups.values() if m == manifest and records_of(one)[g[0]] == record]
            assert not sizes or max(sizes) - min(sizes) <= 1, "a record's groups are even"
            assert sum(sizes) == samples * repeats[manifest]


@settings(max_examples=50)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 5), st.integers(1, 3), st.sampled_from([1, 4])
)
def test_a_window_shows_its_blocks_before_the_next_begins(
    one: Counts, block_records: int, window_blocks: int, n: int
) -> None:
    stream = stream_of([one], [1], Arrangement(n, "blocks", block_records, window_blocks))
    blocks = [int(records_of(one)[place.sample]) // block_records for place in epoch_of(stream, 1)]
    window_of = {block: i // window_blocks for i, block in enumerate(dict.fromkeys(blocks))}
    windows = [window_of[block] for block in blocks]
    assert windows == sorted(windows)
    assert windows[-1] + 1 == math.ceil(math.ceil(len(one) / block_records) / window_blocks)


def test_the_order_without_groups_and_blocks_is_what_it_always_was() -> None:
    """As commit c1c0831 gave it: a run of before goes on with the same samples."""
    small = Stream(IMAGE, [7, 20], [2, 1], 5)
    assert [(place.manifest, place.sample) for place in map(small.locate, range(30, 46))] == [
        *((1, 18), (1, 2), (1, 16), (1, 10), (1, 13), (0, 2), (0, 6), (1, 9)),
        *((0, 5), (1, 18), (0, 5), (1, 2), (1, 4), (1, 14), (1, 3), (0, 3)),
    ]
    large = Stream(POINT_CLOUD, [10_800_000], [1], 1)
    places = [large.locate(position) for position in range(54_000_000, 54_000_006)]
    assert [place.sample for place in places] == [5128631, 10749431, 8720864, 2639044, 1102090, 5487135]
    assert [place.group for place in places] == [(place.sample,) for place in places]
    assert [place.group_start for place in places] == list(range(54_000_000, 54_000_006))


def test_members_and_neighbours_of_a_group_are_drawn_anew_each_epoch() -> None:
    stream = stream_of([[14] * 50], [1], Arrangement(4))
    epochs = [epoch_of(stream, epoch) for epoch in range(2)]
    order, members = zip(
        *(
            ([place.sample // 14 for place in places], {frozenset(place.group) for place in places})
            for places in epochs
        ),
        strict=True,
    )
    assert order[0] != order[1]
    assert len(members[0] & members[1]) < 5
    # No record stays beside the next one: of 200 groups the neighbours are a third of 50 records away, give or take.
    firsts = [place.sample // 14 for place in epochs[0] if place.sample == place.group[0]]
    assert 13 < np.abs(np.diff(firsts)).mean() < 20


def test_each_repeat_of_an_epoch_draws_its_own_groups() -> None:
    stream = stream_of([[8] * 30], [2], Arrangement(4))
    groups = Counter(frozenset(place.group) for place in epoch_of(stream, 0) if place.sample == place.group[0])
    assert sum(groups.values()) == 120
    assert max(groups.values()) <= 2
    assert len(groups) > 100


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("order", ["full", "blocks"])
def test_a_stream_far_away_from_anything_read_is_the_same(n: int, order: str) -> None:
    """Positions in any order, from a copy that a process without fork gets: what was asked before does not matter."""
    stream = stream_of([[3, 0, 5, 1] * 2000, [2] * 900], [1, 2], Arrangement(n, order, 16, 8))
    positions = np.random.default_rng(0).integers(0, 3 * len(stream), 60).tolist()
    here = [stream.locate(position) for position in positions]
    again = pickle.loads(pickle.dumps(stream))
    assert [again.locate(position) for position in reversed(positions)] == here[::-1]


def test_an_index_out_of_the_order_of_its_records_is_refused() -> None:
    """In the middle of a piece of the column, and between two pieces."""
    for wrong in (5, 1 << 16):
        column = np.arange(1 << 17, dtype=np.uint32)
        column[wrong] = 0
        with pytest.raises(UnsortedError, match=f"sample {wrong}$"):
            Groups.of(column, 4, None)


def test_groups_of_a_long_column_are_those_of_its_records() -> None:
    """Records that begin, end and go on where the column is cut into pieces."""
    counts = [3, (1 << 16) - 3, 5, 600_000, 7]
    groups = Groups.of(records_of(counts), 4, 2)
    assert groups.block_samples.tolist() == [1 << 16, 600_005, 7]
    assert groups.block_groups.tolist() == [1 + (1 << 14), 2 + 150_000, 2]
    assert groups.sizes.sum() == sum(counts)
    assert len(groups) == groups.block_groups.sum()
    first, second = (set(groups.members(len(groups) - k, 0)) for k in (1, 2))
    assert first | second == set(range(sum(counts) - 7, sum(counts)))
    assert not first & second


def test_the_keys_are_checked() -> None:
    assert Arrangement.of(DataConfig()) == Arrangement(1, "full", 256, 64)
    with pytest.raises(ValueError, match=r"^data.order: 'sorted' is not one of full, blocks$"):
        DataConfig(order="sorted")
    for key in ("group_by_source", "block_records", "window_blocks"):
        with pytest.raises(ValueError, match=f"^data.{key}: must be at least 1, got 0$"):
            DataConfig(**{key: 0})


@given(st.integers(1, 3000), st.integers(0, 3))
def test_many_are_permuted_as_one_by_one(size: int, key: int) -> None:
    asked = np.arange(size)[:: 1 + size // 50]
    assert permute_all(asked, size, key).tolist() == [permute(int(i), size, key) for i in asked]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 100, 1000])
def test_permutations_are_permutations(size: int) -> None:
    for key in range(4):
        assert sorted(permute_all(np.arange(size), size, key).tolist()) == list(range(size))


def test_many_far_apart_are_permuted_as_one_by_one() -> None:
    asked = np.random.default_rng(0).integers(0, 2**50, 200)
    assert permute_all(asked, 2**50, "far").tolist() == [permute(int(i), 2**50, "far") for i in asked]


def test_permutation_is_even() -> None:
    """Where element 0 lands, over 2,000 keys: chi-square below the 0.1 % point of 9 degrees of freedom."""
    landed = Counter(permute(0, 10, key) for key in range(2000))
    assert sum((landed[i] - 200) ** 2 / 200 for i in range(10)) < 27.9


def test_members_are_drawn_evenly() -> None:
    """All 24 orders of four samples, over 2,400 keys and 50 records: chi-square below the 0.1 % point of 23 degrees of freedom."""
    orders = Counter(tuple((shuffled(4 * (key % 50), 4 * (key % 50) + 4, key) % 4).tolist()) for key in range(2400))
    assert len(orders) == 24
    assert sum((number - 100) ** 2 / 100 for number in orders.values()) < 49.7


def test_streams_far_away_are_cheap() -> None:
    stream = Stream(IMAGE_REGION, [10_800_000], [1], 0)
    places = [stream.locate(3_000_000_000 + i) for i in range(1000)]
    assert {place.epoch for place in places} == {277}
    assert len({place.sample for place in places}) == 1000
    # No neighbour stays a neighbour: the mean step is a third of the range, give or take.
    assert 3.0e6 < np.abs(np.diff([place.sample for place in places])).mean() < 4.2e6
