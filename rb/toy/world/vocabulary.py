"""Every word of the toy world, and the words its grammar is made of. Both toy tokenizers are built from this list.

The captions are made in rb/toy/world/scenes.py and rooms.py, the tokenizers in rb/toy/pretraining/tokenizers.py.
"""

from __future__ import annotations

SHAPES = ("cube", "ball", "cone")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SIZES = ("small", "big")
HORIZONTAL = ("left", "right")
VERTICAL = ("top", "bottom")
POSITIONS = (*HORIZONTAL, *VERTICAL, "middle")
FACTS = "facts"  # the first word of a fact list, never of a caption

_FUNCTION = (
    "a",
    "an",
    "and",
    "the",
    "of",
    "in",
    "on",
    "at",
    "with",
    "is",
    "are",
    "there",
    "to",
    "near",
    "far",
    "front",
    "back",
    "this",
    "it",
)
_PLACES = ("photo", "image", "point", "cloud", "scene", "room", "wall", "corner", "floor")
_QUESTIONS = ("question", "short", "answer", "what", "how", "many", "color", "shape", "size", "object", "yes", "no")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
_PLURALS = tuple(f"{shape}s" for shape in (*SHAPES, "object"))
PUNCTUATION = (",", ".", ":", "?", "-", "'", "/")

WORDS: tuple[str, ...] = (
    *SHAPES,
    *COLOURS,
    *SIZES,
    *POSITIONS,
    FACTS,
    *_FUNCTION,
    *_PLACES,
    *_QUESTIONS,
    *_NUMBERS,
    *_PLURALS,
)
