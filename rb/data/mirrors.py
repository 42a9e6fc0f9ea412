"""Which samples are mirrored in training, and what their captions become: the rules of ``data.mirror``.

A mirror exchanges left and right, so it may make a caption false. The rule is asked about every caption of what is mirrored: one where a sample is
one caption of its source, all of them where a source is shown once with several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rb.core.config import MIRRORS
from rb.core.position_words import mirrored, says_depth, says_position
from rb.core.seeding import uniform

NEVER, SAFE, SWAP, ALWAYS = MIRRORS


@dataclass(frozen=True)
class Mirrored:
    """``axes``: along which the input is mirrored, perhaps none. ``captions``: as they are true of it."""

    axes: tuple[str, ...]
    captions: tuple[str, ...]


def draw_mirror(rule: str, captions: Sequence[str], axes: Sequence[str], key: tuple[object, ...]) -> Mirrored:
    """Whether one input is mirrored: each axis that ``rule`` allows, with probability 1/2.

    Args:
        rule: of ``data.mirror``: ``never``, ``safe``, ``swap`` or ``always``.
        captions: all that is said of the input; a mirror must suit every one.
        axes: that the input can be mirrored along: first the one that exchanges left and right, then the line of sight where it is another.
        key: of the draws.
    """
    kept = tuple(captions)
    if rule == NEVER:
        return Mirrored((), kept)
    allowed = {axis: (_exchanged if i else _sides_exchanged)(rule, kept) for i, axis in enumerate(axes)}
    drawn = {axis: texts for axis, texts in allowed.items() if texts and uniform("mirror", axis, *key) < 0.5}
    # The first axis alone changes words.
    return Mirrored(tuple(drawn), drawn.get(axes[0]) or kept)


def _sides_exchanged(rule: str, captions: tuple[str, ...]) -> tuple[str, ...] | None:
    """``captions`` where left is right; none where they would be false."""
    if rule == ALWAYS:
        return captions
    texts = [mirrored(text) if rule == SWAP else None if says_position(text) else text for text in captions]
    known = tuple(text for text in texts if text is not None)
    return known if len(known) == len(texts) else None


def _exchanged(rule: str, captions: tuple[str, ...]) -> tuple[str, ...] | None:
    """``captions`` where front is back, and left is right for who turns with it; none where they would be false."""
    free = rule == ALWAYS or not any(says_position(text) or says_depth(text) for text in captions)
    return captions if free else None
