"""A tokeniser and scores that need no Java: for validation while training, and for machines without Java.

Lower-case tokens joined by spaces, punctuation removed, as Stanford's PTB tokeniser gives them for COCO's evaluation. Scores of one
tokeniser are not compared with scores of the other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

from rb.core.metrics import METRICS, Metric
from rb.core.text import one_line

_SPLITS = (
    (re.compile("[\u2018\u2019\u201b\u0060]"), "'"),
    (re.compile("[\u201c\u201d]"), '"'),
    (
        re.compile(r"\b(can)(not)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b|\b(lem|gim)(me)\b"),
        lambda m: " ".join(g for g in m.groups() if g),
    ),
    (re.compile(r"\b(\w+)(n't)\b"), r"\1 \2"),
    (re.compile(r"('(?:s|m|d|re|ve|ll))\b(?!')"), r" \1 "),
    (re.compile(r"\("), " -lrb- "),
    (re.compile(r"\)"), " -rrb- "),
)
_TOKEN = re.compile(
    r"n't|'(?:s|m|d|re|ve|ll)\b|-[lr]rb-"
    r"|(?:[^\W\d_]\.){2,}"  # u.s.
    r"|\w+(?:[-.,/'&_:]\w+)*"  # t-shirt, 3.5, black/white, rock'n'roll
    r"|-+|\.\.\.|[^\w\s]"
)


def simple_tokenise(texts: Sequence[str]) -> list[str]:
    """A tokeniser without Java: equal to PTB on plain captions, not on rare forms (fractions, currency signs, emoticons, addresses)."""
    tokenised = []
    for text in texts:
        line = one_line(text).lower()
        for pattern, replacement in _SPLITS:
            line = pattern.sub(replacement, line)
        tokenised.append(drop_punctuation(_TOKEN.findall(line)))
    return tokenised


def drop_punctuation(tokens: Sequence[str]) -> str:
    """Tokens without punctuation, joined by spaces."""
    return " ".join(token for token in tokens if token not in PUNCTUATIONS and token != '"')


def simple_scores(
    captions: Sequence[str], references: Sequence[Sequence[str]], metrics: Sequence[Metric]
) -> dict[str, float]:
    """Metric name to its value for captions, each against its own references (at least one). Only metrics that need no Java."""
    assert len(captions) == len(references) > 0
    given = {str(i): [line] for i, line in enumerate(simple_tokenise(captions))}
    wanted = {str(i): simple_tokenise(texts) for i, texts in enumerate(references)}
    found = {}
    for metric in metrics:
        assert metric.score is not None, f"{metric.name} needs Java"
        found[metric.name] = metric.score(wanted, given)[0]
    return found


def simple_cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr (0 to 10) of captions, each against its own references."""
    return simple_scores(captions, references, [METRICS["CIDEr"]])["CIDEr"]
