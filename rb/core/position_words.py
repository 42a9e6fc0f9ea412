"""Words of an English caption that a mirror makes false: left and right, hours of a clock, the compass, writing; and what they become.

When in doubt a caption counts as one that says a position: then nothing is mirrored, and nothing is false. Words are told apart whole, so that
"bright", "upright" and "leftovers" say no side; "right" in the sense of "correct" cannot be told from the side, and counts as one.
"""

from __future__ import annotations

import re
import unicodedata


def _either(words: str) -> frozenset[str]:
    return frozenset(words.split())


# A word is a run of letters: hyphens and underscores separate ("left-hand"); an ordinal number ("2nd"); or a digit.
_WORD = re.compile(r"[^\W\d_]+|\d+(?:st|nd|rd|th)(?![^\W\d_])|\d")
# Words that hold "left" or "right" and say no side. All others do, those written together included ("topleft", "leftguy").
_NO_SIDE = re.compile(
    r"\w*bright\w*|(?:af)?fright\w*|\w*wright\w*|upright\w*|sprightl\w*|outright|downright|forthright\w*|al?right|copyright\w*"
    r"|birthrights?|rightful\w*|righteous\w*|rightly|cleft\w*|leftovers?|leftist\w*"
)
_SHORT_SIDES = _either("l r lt rt lf lft rgt rght rigth rigt righ rite lhs rhs lh rh")  # as people type them
_COMPASS = re.compile(
    r"(?:north|south)?(?:north|south|east|west)(?:ern|erner|ernmost|erly|ward|bound|paw)?s?|nw|ne|sw|se"
)
_CLOCK = re.compile(r"\w*clock\w*|c?cw|portside|starboard")
_WRITING = _either(
    "say says saying said read reads reading text texts word words wording letter letters lettering lettered write writes writing written "
    "spell spells spelled spelling number numbers numbered numeral numerals digit digits alphabet caption captioned label labels labeled "
    "labelled"
)
_QUOTES = frozenset('"“”„«»')
_SIDE_OF_A_VEHICLE = re.compile(r"\b(?:port|drivers?|driver s|passengers?|passenger s) side\b")
# Places along the line of sight, which a mirror that turns front to back makes false for a fixed viewer.
_DEPTH = _either(
    "front back backs behind rear fore forward forwards backward backwards foreground background close closer closest near nearer nearest far "
    "farther farthest further furthest distant distance"
)

# Where "left" and "right" are a side for sure: in these words, ...
_PAIR = re.compile(
    r"(?P<before>far|top|bottom|upper|lower|mid|middle|center|centre|front|back|rear)?(?P<side>left|right)"
    r"(?P<after>most|side|sided|hand|handed|hander|handers|ward|wards|y)?"
)
# ... behind these, ...
_BEFORE_A_SIDE = _either(
    "the on to at from far top bottom upper lower front back rear middle center centre mid outer inner extreme furthest farthest closest nearest "
    "your our my his her its their"
)
# ... and before these; but never before those of the third list ("the left over food"), nor at a caption's start before the fourth's ("right
# next to the door").
_AFTER_A_SIDE = _either(
    "of side sides hand hands handed arm arms leg legs foot feet eye ear shoulder knee elbow wing corner corners edge half end part portion third "
    "quarter wall lane page wheel most"
)
_NEVER_AFTER_A_SIDE = _either("over overs alone open unattended")
_AFTER_AN_ADVERB_OR_VERB = _either(
    "behind out off empty up down on in at by next beside besides above below under underneath beneath near before after across against along "
    "alongside there here now where when while as for from with without to through into onto around about away outside inside between over is "
    "are was were has have a an the his her their its it him them this that these those some and or but"
)


def says_position(caption: str) -> bool:
    """Whether a mirror that exchanges left and right may make ``caption`` false."""
    return not _is_known(caption) or any(map(_holds_side, _names(caption)))


def says_depth(caption: str) -> bool:
    """Whether ``caption`` says what is in front, behind, near or far, which a mirror across the line of sight may make false."""
    return not _DEPTH.isdisjoint(_names(caption))


def mirrored(caption: str) -> str | None:
    """``caption`` of the mirrored scene, with left and right exchanged; none where a word of position may mean something else."""
    if not says_position(caption):
        return caption
    if not _is_known(caption) or unicodedata.normalize("NFKC", caption) != caption:
        return None
    names, parts, end = _names(caption), [], 0
    for i, word in enumerate(_WORD.finditer(caption)):
        if not _holds_side(names[i]):
            continue
        other = _other_side(names, i, word[0])
        if other is None:
            return None
        parts += [caption[end : word.start()], other]
        end = word.end()
    return "".join(parts) + caption[end:]


def _names(caption: str) -> list[str]:
    """The words, lower case, without accents; wide letters and the like as usual ones."""
    words = (
        unicodedata.normalize("NFKD", word.lower()) for word in _WORD.findall(unicodedata.normalize("NFKC", caption))
    )
    return ["".join(c for c in word if not unicodedata.combining(c)) for word in words]


def _is_known(caption: str) -> bool:
    """Whether left and right are all of ``caption`` that a mirror may make false, as far as this file can tell."""
    # Quotations, invisible characters, arrows and pointing hands.
    if any(c in _QUOTES or (not c.isascii() and unicodedata.category(c) in ("Cf", "Sm", "So")) for c in caption):
        return False
    names = _names(caption)
    for name in names:
        if (
            name in _SHORT_SIDES
            or name in _WRITING
            or name.isdigit()
            or _COMPASS.fullmatch(name)
            or _CLOCK.fullmatch(name)
        ):
            return False
        # A language that this file does not know.
        if any(not c.isascii() and not unicodedata.name(c, "").startswith("LATIN") for c in name):
            return False
    return not _SIDE_OF_A_VEHICLE.search(" ".join(names))


def _holds_side(name: str) -> bool:
    return ("left" in name or "right" in name) and not _NO_SIDE.fullmatch(name)


def _other_side(names: list[str], i: int, written: str) -> str | None:
    """Word number ``i`` for the other side, in the case it was written in; none where it may be no side. The same for left and for right."""
    pair = _PAIR.fullmatch(names[i])
    if pair is None:
        return None
    before, after = (names[i - 1] if i else ""), (names[i + 1] if i + 1 < len(names) else "")
    compound = pair["before"] or pair["after"]
    alone = len(names) == 1
    first = not i and bool(after) and after not in _AFTER_AN_ADVERB_OR_VERB
    certain = compound or alone or first or before in _BEFORE_A_SIDE or after in _AFTER_A_SIDE
    if not certain or after in _NEVER_AFTER_A_SIDE:
        return None
    start, end = pair.span("side")
    other, side = ("right" if pair["side"] == "left" else "left"), written[start:end]
    cased = other.upper() if side.isupper() else other.capitalize() if side[0].isupper() else other
    return written[:start] + cased + written[end:]
