"""VQAv2 accuracy by the three normalisations that published figures were made with; the name is part of the score's name.

``official``: prediction and answers are normalised where the 10 answers are not all equal. ``lavis``: the prediction always, answers by
punctuation only, and only where not all equal. ``lmms_eval``: both, always. An annotator's accuracy is min(1, equal answers among the other
9 / 3); a question's is the mean over annotators. Quirks of the public scripts that change figures are kept: 32 periods at most are removed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean

LAVIS, ACCURACY = "lavis", "accuracy_"
MODES = ("official", LAVIS, "lmms_eval")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32
_NUMBERS = {
    word: str(n)
    for n, word in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_PLAIN = """ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's  isn't it'd
it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't somebody'll somebody's
someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll they're they've 'twas wasn't we've weren't what'll
what're what's what've when's where'd where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll
you're you've"""
_DOUBLE = """'ow's'at couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've there'd've
they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've"""
# Written forms without an apostrophe (or one of several) to their usual form; "somebody'd" loses its own in the public table.
_CONTRACTIONS = {word.replace("'", ""): word for word in _PLAIN.split()}
_CONTRACTIONS |= {
    word[:at] + word[at + 1 :]: word for word in _DOUBLE.split() for at, sign in enumerate(word) if sign == "'"
}
_CONTRACTIONS |= {"somebody'd": "somebodyd"}


def without_punctuation(text: str) -> str:
    """Punctuation removed where it stands beside a space or the text has digit, comma, digit; a space in its place elsewhere."""
    joined = _DIGIT_COMMA_DIGIT.search(text) is not None
    out = text
    for sign in _PUNCTUATION:
        beside_space = f"{sign} " in text or f" {sign}" in text
        out = out.replace(sign, "" if joined or beside_space else " ")
    return _PERIOD.sub("", out, count=_MOST_PERIODS)


def normalise(text: str) -> str:
    """The normal form: no punctuation, lower case, digits for number words, no articles, contractions with apostrophes."""
    words = (_NUMBERS.get(word, word) for word in without_punctuation(one_line(text)).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def one_line(text: str) -> str:
    """Line breaks and tabs as spaces, ends stripped."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def accuracy_name(mode: str) -> str:
    """Of the score: it names its normalisation."""
    return ACCURACY + mode


def vqa_accuracy(prediction: str, answers: Sequence[str], mode: str) -> float:
    """Accuracy of one prediction, 0 to 1, against its annotators' answers, two or more. ``mode``: one of ``MODES``."""
    assert mode in MODES, mode
    assert len(answers) > 1, answers
    given, wanted = one_line(prediction), list(answers)
    split = len(set(map(one_line, wanted))) > 1
    if mode == LAVIS:
        given = normalise(given)
        wanted = [without_punctuation(answer) for answer in wanted] if split else wanted
    else:
        wanted = [one_line(answer) for answer in wanted]
        if mode == "lmms_eval" or split:
            given, wanted = normalise(given), [normalise(answer) for answer in wanted]
    hits = [sum(other == given for j, other in enumerate(wanted) if j != i) for i in range(len(wanted))]
    shares = [min(1.0, n / 3) for n in hits]
    # lmms-eval rounds once, the others at each addition: the last digit differs.
    return fmean(shares) if mode == "lmms_eval" else sum(shares) / len(shares)
