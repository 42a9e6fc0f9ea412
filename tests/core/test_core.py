"""Core: keyed randomness, box geometry, text cleaning, the environment of ranks."""

from __future__ import annotations

import numpy as np
import pytest

from rb.core import boxes, dist, seeding, text
from rb.core.modality import MODALITIES, in_table_order, modality_spec


def test_draws_are_keyed() -> None:
    assert seeding.hash_key("ab", "c") != seeding.hash_key("a", "bc")
    assert seeding.hash_key(1, 2) == seeding.hash_key(1, 2)
    assert -(2**63) <= seeding.hash_key("x") < 2**63
    draws = np.array([seeding.uniform("u", i) for i in range(4000)])
    assert draws.min() >= 0
    assert np.float32(draws).max() < 1
    assert abs(draws.mean() - 0.5) < 0.02
    assert (
        seeding.generator("g", 1).random() == seeding.generator("g", 1).random() != seeding.generator("g", 2).random()
    )


def test_image_boxes() -> None:
    assert boxes.xywh_to_xyxy([1, 2, 3, 4]) == [1, 2, 4, 6]
    assert boxes.image_box_problem([0, 0, 10, 10], 10, 10) is None
    assert boxes.image_box_problem([-0.5, 0, 10.9, 10], 10, 10) is None  # an annotator's rounding
    assert boxes.image_box_problem([-2, 0, 5, 5], 10, 10) == "box_outside_image"
    assert boxes.image_box_problem([5, 5, 5, 9], 10, 10) == "box_empty"
    assert boxes.image_box_problem([10.2, 0, 10.8, 5], 10, 10) == "box_empty"  # nothing left inside
    assert boxes.image_box_problem([0, 0, float("nan"), 5], 10, 10) == "box_empty"
    assert boxes.normalise_image_box([-0.5, 0, 5, 10], 10, 20) == [0, 0, 0.5, 0.5]


def test_cloud_boxes_move_with_the_cloud() -> None:
    box = [0.0, 0.0, 0.0, 2.0, 1.0, 1.0]
    quarter = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    moved = boxes.transform_cloud_box(box, quarter, np.array([1.0, 0.0, 0.0]))
    np.testing.assert_allclose(moved, [0, 0, 0, 1, 2, 1])
    points = np.random.default_rng(0).uniform(box[:3], box[3:], (100, 3)) @ quarter.T + [1, 0, 0]
    assert (points >= np.array(moved[:3]) - 1e-9).all()
    assert (points <= np.array(moved[3:]) + 1e-9).all()
    assert boxes.cloud_box_problem([0, 0, 0, 1, 0, 1]) == "box_empty"
    assert boxes.frame_to_unit([-1, 0, 1]) == [0, 0.5, 1]


@pytest.mark.parametrize("separator", ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029", "\t", "\0"])
def test_captions_stay_on_one_line(separator: str) -> None:
    assert text.one_line(f" a cat{separator}on a mat {separator}") == "a cat on a mat"


def test_clean_caption() -> None:
    assert text.clean_caption('A "Big" dog; (running): #1!') == "a big dog running 1"
    assert len(text.clean_caption("word " * 80).split()) == text.MAX_WORDS


def test_a_rank_left_in_the_shell_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name in launcher:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")  # without RANK nobody is meant
    dist.init()
    assert (dist.world_size(), dist.active()) == (1, False)
    for left, words in (
        ({"RANK": "0"}, "RANK=0 is set, but WORLD_SIZE is not; unset RANK if it was left in the shell, or set all of"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, "RANK=0 is set, but MASTER_ADDR is not"),
        (launcher | {"MASTER_PORT": ""}, "RANK=0 is set, but MASTER_PORT is not"),
        (launcher | {"RANK": "2"}, "RANK=2 and WORLD_SIZE=2: must be whole numbers, RANK below WORLD_SIZE"),
        (launcher | {"RANK": "first"}, "RANK=first and WORLD_SIZE=2"),
    ):
        for name in launcher:
            monkeypatch.setenv(name, left[name]) if name in left else monkeypatch.delenv(name, raising=False)
        with pytest.raises(ValueError, match=words):
            dist.init()


def test_modality_table() -> None:
    assert in_table_order(["point_cloud", "image", "point_cloud"]) == ("image", "point_cloud")
    with pytest.raises(ValueError, match="image_region"):
        modality_spec("video")
    assert all("." not in name for name in MODALITIES)
