"""Words that a mirror makes false: which captions hold one, and what the mirrored captions say."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rb.core.position_words import mirrored, says_depth, says_position

# With its mirrored form; none where that is not certain.
POSITIONS = {
    "leftmost zebra": "rightmost zebra",
    "man on left-hand side": "man on right-hand side",
    "lefty": "righty",
    "the right-hand side of the room": "the left-hand side of the room",
    "left-handed batter": "right-handed batter",
    "left horse": "right horse",
    "left": "right",
    "Left sofa, TOP-RIGHT corner": "Right sofa, TOP-LEFT corner",
    "topleft cup": "topright cup",
    "far right guy": "far left guy",
    "2nd person from the left": "2nd person from the right",
    "three dogs from left to right": "three dogs from right to left",
    "the chair is to the left of the brown desk": "the chair is to the right of the brown desk",
    "man on the right behind the car": "man on the left behind the car",
    "his right hand holds a café cup": "his left hand holds a café cup",
    "a bright cup in the left corner": "a bright cup in the right corner",
    # A side, or "correct", "immediately", "departed", "remaining".
    "the chair is right next to the door": None,
    "right behind the sofa": None,
    "a man left his bag on the right": None,
    "the only slice left": None,
    "the left over food": None,
    "the left one of the two, right under the lamp": None,
    "horse left": None,
    # A clock, the compass, short and written forms, what is no English, quotations, writing, numbers, arrows.
    "dog at 3 o'clock": None,
    "a clock on the wall": None,
    "a round clocktower": None,
    "turned counter-clockwise": None,
    "the east wall": None,
    "the north-eastern corner, west of the door": None,
    "man on rt": None,
    "l side": None,
    "leftguy": None,
    "两只狗在左边": None,
    "le\u200bft dog": None,
    "собака слева": None,
    'a shirt with "left" on it': None,
    "a sign that reads stop": None,
    "player number seven": None,
    "player 23": None,
    "the dog ⬅": None,
    "the driver's side door": None,
    "\uff4c\uff45\uff46\uff54 dog": None,  # wide letters
}
NO_POSITIONS = (
    "a bright red umbrella",
    "an upright piano",
    "leftovers on a plate",
    "a wheelwright with a brightly painted cart",
    "a frightened cat in a copyright office",
    "the cleft of a rock",
    "easter eggs beside a weathered vest",
    "a locked door, alright",
    "a naïve café décor",
    "un chien à côté d'une fenêtre dorée",
    "",
)


@pytest.mark.parametrize(("caption", "other"), POSITIONS.items())
def test_captions_with_a_position_and_their_mirrored_form(caption: str, other: str | None) -> None:
    assert says_position(caption)
    assert mirrored(caption) == other
    if other is not None:
        assert mirrored(other) == caption


@pytest.mark.parametrize("caption", NO_POSITIONS)
def test_captions_without_a_position_stay_as_they_are(caption: str) -> None:
    assert not says_position(caption)
    assert mirrored(caption) == caption


def test_front_and_back_are_told_apart_from_left_and_right() -> None:
    for caption in ("the chair behind the desk", "a lamp in the Back of the room", "the nearest chair"):
        assert says_depth(caption)
        assert not says_position(caption)
    assert not says_depth("a backpack on the left of a backless bench")


WORDS = (
    "left right leftmost rightmost left-hand righty the a on to of at side corner in behind next chair dog bright upright leftovers far top bottom "
    "red his hand and is Left RIGHT , . topleft"
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(WORDS.split()), max_size=9).map(" ".join))
def test_a_caption_mirrored_twice_is_itself(caption: str) -> None:
    """And nothing but its sides changes; a caption without a side never changes."""
    other = mirrored(caption)
    if other is None:
        assert says_position(caption)
        return
    assert mirrored(other) == caption
    blank = [text.lower().replace("left", "_").replace("right", "_") for text in (caption, other)]
    assert blank[0] == blank[1]
    assert says_position(caption) == says_position(other)
    sides = [word for word in caption.lower().replace("-", " ").split() if word in ("left", "right")]
    now = [word for word in other.lower().replace("-", " ").split() if word in ("left", "right")]
    assert now == [{"left": "right", "right": "left"}[side] for side in sides]


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.sampled_from(["left", "Right", "LEFT", "3", "east", "o'clock"]), st.text(max_size=40))
def test_no_text_around_it_hides_a_position(before: str, word: str, after: str) -> None:
    assert says_position(f"{before} {word} {after}")
