"""Scan2Cap's scores: captions of the objects of a scene count where a detector's box overlaps the described object's enough.

CIDEr, METEOR, BLEU-4 and ROUGE-L of each described object; where its box overlaps less than the limit, or it has none, the object scores 0. A
score is the mean over all described objects (m@kIoU of Scan2Cap, arXiv 2012.02206). Published programs put ``sos`` and ``eos`` around every text,
which raises the scores, as the two words always fit: in or out is a switch, and part of the protocol that is printed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from rb.core.strict_json import FormatError
from rb.data.predictions import Prediction
from rb.data.prepare.proposals import matched, overlaps, read_proposals
from rb.evaluation.java import find_java
from rb.evaluation.meteor import Meteor
from rb.evaluation.simple_cider import simple_tokenise
from rb.evaluation.tokenise import ptb_tokenise

LIMITS = (0.25, 0.5)
TOKENS = ("in", "out")
_PREFIX = "scannet/"  # of our source ids


@dataclass(frozen=True)
class Found:
    """What stands for one described object: a caption and how much its box overlaps the object's; 0 where there is none."""

    caption: str
    iou: float


def in_given_boxes(rows: Sequence[Prediction]) -> dict[str, Found]:
    """Captions of the described objects' own boxes: every one counts."""
    return {row.id: Found(row.prediction, 1.0) for row in rows}


def in_predicted_boxes(described: Sequence[Prediction], predicted: Sequence[Prediction]) -> dict[str, Found]:
    """Captions that were predicted for boxes that a detector proposed, under the ids of the objects that they were matched to.

    Raises:
        FormatError: an id that is not a described object's.
    """
    boxes = {row.id: row.box for row in described}
    found = {}
    for row in predicted:
        if row.id not in boxes:
            raise FormatError(f"id {row.id!r} is not among the described objects; give both files of one split")
        one, other = (np.array([box], dtype=np.float64) for box in (row.box, boxes[row.id]))
        found[row.id] = Found(row.prediction, float(overlaps(one, other)[0][0, 0]))
    return found


def in_proposals(described: Sequence[Prediction], path: Path, form: str, match: str) -> tuple[dict[str, Found], bool]:
    """Proposals matched to the described objects of each scene; and whether the captions are the proposals' own.

    A file without captions says only where objects are found: then an object's caption is the one predicted for its own box.

    Raises:
        ValueError: the file is of another kind or of other scenes, or only some boxes have captions.
    """
    scenes: dict[str, list[Prediction]] = {}
    for row in described:
        scenes.setdefault(row.source_id.removeprefix(_PREFIX), []).append(row)
    proposals = read_proposals(path, form, scenes, Counter(), captions=True)
    texts = [text for one in proposals.values() for text in one.captions]
    own = any(text is not None for text in texts)
    if own and None in texts:
        raise FormatError(
            f"{path}: {texts.count(None):,} of {len(texts):,} boxes have no caption; give every box one, or none"
        )
    found: dict[str, Found] = {}
    for name, one in proposals.items():
        rows = {row.id: row for row in scenes[name]}
        boxes = {row.id: row.box or [] for row in scenes[name]}
        for item, (number, iou) in matched(one.boxes, boxes, list(rows), match).items():
            found[item] = Found(str(one.captions[number]) if own else rows[item].prediction, iou)
    return found, own


def score_scan2cap(
    described: Sequence[Prediction],
    found: Mapping[str, Found],
    limits: Sequence[float] = LIMITS,
    tokens: str = "in",
    use_java: bool = True,
) -> tuple[dict[str, float], dict[str, int]]:
    """``CIDEr@0.5`` and so on, fractions; and how many described objects are found at each limit.

    Args:
        described: all described objects with their references.
        found: by id; an object that is not there is not found.
        tokens: ``in``: with ``sos`` and ``eos`` around every text.
        use_java: without it METEOR is left out and the simple tokeniser serves.
    """
    assert tokens in TOKENS, tokens
    each = _each(
        [found[row.id].caption if row.id in found else "" for row in described],
        [row.references for row in described],
        around=("sos ", " eos") if tokens == "in" else ("", ""),
        use_java=use_java,
    )
    iou = np.array([found[row.id].iou if row.id in found else 0.0 for row in described])
    scores = {
        f"{name}@{limit:g}": float((values * (iou >= limit)).mean())
        for limit in limits
        for name, values in each.items()
    }
    return scores, {f"{limit:g}": int((iou >= limit).sum()) for limit in limits}


def _each(
    captions: Sequence[str], references: Sequence[Sequence[str]], around: tuple[str, str], use_java: bool
) -> dict[str, np.ndarray]:
    """Metric to its value for each example, in the order given: [N]."""
    java = find_java() if use_java else None
    texts = [*captions, *(text for one in references for text in one)]
    lines = iter(ptb_tokenise(texts, java) if java else simple_tokenise(texts))
    given = [f"{around[0]}{next(lines)}{around[1]}" for _ in captions]
    wanted = [[f"{around[0]}{next(lines)}{around[1]}" for _ in one] for one in references]
    predictions = {k: [text] for k, text in enumerate(given)}
    truth = dict(enumerate(wanted))
    found = {
        "CIDEr": Cider().compute_score(truth, predictions)[1],
        "BLEU-4": Bleu(4).compute_score(truth, predictions, verbose=0)[1][3],
        "ROUGE-L": Rouge().compute_score(truth, predictions)[1],
    }
    if java:
        with Meteor() as meteor:
            found["METEOR"] = meteor.scores(given, wanted, java)[1]
    return {name: np.asarray(values, dtype=np.float64) for name, values in found.items()}
