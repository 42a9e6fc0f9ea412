"""The schedule as counts, prefixes, boundaries; pure in (configuration, step)."""

from __future__ import annotations

import hashlib
import itertools
import pickle
import random
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from rb.core.config import TrainConfig
from rb.core.schedules import SCHEDULES, Counts, Order, Turn, weighted_round_robin
from rb.core.seeding import generator
from rb.training.schedule import Schedule

KINDS = tuple(SCHEDULES)


def random_worlds(number: int, seed: int = 0) -> list[tuple[dict[str, int], int]]:
    draw = random.Random(seed)
    names = ("image", "image_region", "point_cloud", "point_cloud_region", "fifth")
    return [
        (
            {m: draw.choice((1, 3, draw.randint(1, 60), draw.randint(1, 400))) for m in names[: draw.randint(1, 5)]},
            g,
        )
        for g in (draw.randint(1, 40) for _ in range(number))
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_epochs_hold_every_sample_and_join_without_gap(kind: str) -> None:
    for samples, batch in random_worlds(40):
        schedule = Schedule(kind, samples, batch)
        step, made = 0, dict.fromkeys(samples, 0)
        for epoch in range(4):
            assert schedule.total_steps(epoch) == step
            counts = schedule.epoch_steps(epoch)
            turns = [schedule.at(s) for s in range(step, step + sum(counts.values()))]
            assert Counter(t.modality for t in turns) == Counter({m: c for m, c in counts.items() if c})
            assert all(t.epoch == epoch for t in turns)
            for turn in turns:  # each modality's own steps are consecutive
                assert turn.modality_step == made[turn.modality]
                made[turn.modality] += 1
            step += len(turns)
            for (
                modality,
                n,
            ) in samples.items():  # after E epochs: shown E times, and not one batch more than needed
                shown = made[modality] * batch
                assert (epoch + 1) * n <= shown < (epoch + 1) * n + batch
        assert schedule.total_steps(4) == step


def test_every_prefix_of_the_weighted_order_is_within_one_turn_of_its_proportion() -> None:
    draw = random.Random(1)
    cases = [[draw.randint(1, draw.choice((3, 20, 300))) for _ in range(draw.randint(1, 7))] for _ in range(150)]
    cases += [
        [1, 1, 1],
        [1000, 1],
        [1, 1, 998],
        [7, 5, 3, 1],
        [0, 4, 0, 3],
        [500, 250, 125, 62, 31, 15, 7, 3, 1],
    ]
    for counts in cases:
        total, served = sum(counts), [0] * len(counts)
        worst = Fraction(0)
        for turn, index in enumerate(weighted_round_robin(counts, 0, 0).tolist(), start=1):
            served[index] += 1
            worst = max(
                worst,
                *(abs(s - Fraction(c * turn, total)) for s, c in zip(served, counts, strict=True)),
            )
        assert served == counts
        present = sum(c > 0 for c in counts)
        assert worst <= (1 - Fraction(1, 2 * present - 2) if present > 1 else 0)  # Tijdeman's bound, below one


def test_round_robin_takes_strict_turns_until_one_is_used_up() -> None:
    schedule = Schedule("round_robin", {"image_region": 8, "point_cloud": 2, "point_cloud_region": 4}, 2)
    initials = {"image_region": "i", "point_cloud": "p", "point_cloud_region": "s"}
    assert "".join(initials[schedule.at(s).modality] for s in range(14)) == "ipsisii" * 2


def test_sequential_is_one_modality_after_another() -> None:
    schedule = Schedule("sequential", {"image_region": 5, "point_cloud": 3}, 2)
    assert [schedule.at(s).modality for s in range(5)] == ["image_region"] * 3 + ["point_cloud"] * 2
    # 10 and 6 samples after two epochs: 5 and 3 steps in all, so the second epoch has 2 and 1
    assert [schedule.at(s) for s in range(5, 8)] == [
        Turn("image_region", 3, 1),
        Turn("image_region", 4, 1),
        Turn("point_cloud", 2, 1),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_any_step_can_be_asked_first(kind: str) -> None:
    for samples, batch in random_worlds(10, seed=2):
        walked = Schedule(kind, samples, batch)
        steps = list(range(min(walked.total_steps(5), 200)))
        expected = [walked.at(s) for s in steps]
        random.Random(3).shuffle(steps)
        for step in steps[:40]:
            assert Schedule(kind, samples, batch).at(step) == expected[step]


def test_a_step_far_away_costs_no_walk() -> None:
    schedule = Schedule("weighted_round_robin", {"image_region": 12_800, "point_cloud": 6_400}, 128)
    turn = schedule.at(150 * 10**9 + 7)
    assert turn == Turn("point_cloud", 50 * 10**9 + 2, 10**9)


def test_an_epoch_may_have_no_step_of_a_tiny_modality() -> None:
    schedule = Schedule("weighted_round_robin", {"image_region": 100, "point_cloud": 1}, 10)
    epochs = [turn.epoch for turn in map(schedule.at, range(101)) if turn.modality == "point_cloud"]
    assert epochs == [0]  # its first batch holds ten repetitions of its one sample: enough for ten epochs
    assert schedule.at(101) == Turn("image_region", 100, 10) or schedule.at(101).modality == "point_cloud"
    assert schedule.epoch_steps(10) == {"image_region": 10, "point_cloud": 1}
    lonely = Schedule("weighted_round_robin", {"point_cloud": 1}, 10)
    assert [lonely.at(s).epoch for s in range(3)] == [0, 10, 20]


def test_epochs_made_are_a_fraction_and_whole_at_their_end() -> None:
    schedule = Schedule("round_robin", {"a": 30, "b": 11}, 4)
    assert [schedule.epochs_after(schedule.total_steps(epochs)) for epochs in range(4)] == [0, 1, 2, 3]
    steps = schedule.total_steps(1)
    assert [schedule.epochs_after(step) for step in range(steps)] == [step / steps for step in range(steps)]
    # Steps of a run of 2,200 that an epoch of one sample each would never end: the value still grows.
    assert Schedule("sequential", {"a": 2200}, 1).epochs_after(1420) == 1420 / 2200


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"schedule: 'weighted'.*weighted_round_robin"):
        Schedule("weighted", {"image_region": 1}, 1)
    with pytest.raises(ValueError, match="train_modalities"):
        Schedule("sequential", {}, 1)
    with pytest.raises(ValueError, match="'point_cloud': 0 samples"):
        Schedule("sequential", {"image_region": 3, "point_cloud": 0}, 1)
    with pytest.raises(ValueError, match="global_batch_size: 0"):
        Schedule("sequential", {"image_region": 3}, 0)
    with pytest.raises(ValueError, match="step: -1"):
        Schedule("sequential", {"image_region": 3}, 1).at(-1)


def test_order_of_the_table_not_of_the_alphabet() -> None:
    for names in itertools.permutations(("a", "b", "c")):
        schedule = Schedule("round_robin", dict.fromkeys(names, 4), 4)
        assert tuple(schedule.at(s).modality for s in range(3)) == names


@pytest.mark.parametrize(
    ("counts", "digests"),
    [
        ([3, 5, 2], ("9e3d0798cb18", "6af2f1b3829c", "48a960bc7955")),
        ([0, 4, 0, 3], ("06838537cc13", "06838537cc13", "72479b10d468")),
        ([40, 17, 1, 9], ("274f72b592f2", "3f865e07d393", "fb5b32221949")),
        ([500, 250, 125, 62], ("828dd0b1db36", "56c1937a68ae", "5a847e5a44d3")),
    ],
)
def test_orders_are_those_of_earlier_versions(counts: list[int], digests: tuple[str, ...]) -> None:
    kinds = ("weighted_round_robin", "round_robin", "sequential")
    for kind, digest in zip(kinds, digests, strict=True):
        for seed, epoch in ((0, 0), (5, 3)):  # none of the three draws
            found = SCHEDULES[kind](counts, seed, epoch)
            assert hashlib.sha256(found.tobytes()).hexdigest()[:12] == digest, kind


def shuffled(counts: Counts, seed: int, epoch: int) -> Order:
    """The trial of docs/extending.md: every modality gets its steps, in a random order."""
    steps = np.repeat(np.arange(len(counts), dtype=np.uint8), counts)
    return generator("schedule", seed, epoch).permutation(steps)


def test_a_new_schedule_is_one_function_and_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"train\.schedule: 'shuffled' is not one of weighted_round_robin"):
        TrainConfig(schedule="shuffled")
    monkeypatch.setitem(SCHEDULES, "shuffled", shuffled)
    assert TrainConfig(schedule="shuffled").schedule == "shuffled"
    samples = {"image_region": 40, "point_cloud": 20}

    def modalities(seed: int, epoch: int) -> list[str]:
        schedule = pickle.loads(pickle.dumps(Schedule("shuffled", samples, 2, seed)))  # as a loader process gets it
        steps = range(schedule.total_steps(epoch), schedule.total_steps(epoch + 1))
        return [schedule.at(step).modality for step in steps]

    assert modalities(0, 0) == modalities(0, 0)
    assert Counter(modalities(0, 0)) == {"image_region": 20, "point_cloud": 10}
    assert len({tuple(modalities(seed, epoch)) for seed in range(2) for epoch in range(2)}) == 4
