"""Phrases of regions (RefCOCO, RefCOCO+, RefCOCOg, Visual Genome, Ref-L4): METEOR, CIDEr and SPICE under a protocol that the score names.

Published tables differ in what one entry is. ``region``: a region with all its sentences as references, as in the paper and in lmms-eval.
``sentence``: each sentence is an entry of its own, with the prediction of its region, as in PixelRefer's and Osprey's files. CIDEr weighs words
by the entries, so the two are not comparable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rb.data.predictions import Prediction
from rb.evaluation.caption_metrics import CaptionScores, CaptionSet, score_sets

METRICS = ("METEOR", "CIDEr", "SPICE")
PER = ("region", "sentence")


def score_phrases(
    rows: Sequence[Prediction], per: str, use_java: bool = True, spice_cache: Path | None = None
) -> CaptionScores:
    """``per``: one of ``PER``. ``ValueError``: an example without references."""
    predictions, references = _entries(rows, per)
    return score_sets([CaptionSet(predictions, references)], use_java, spice_cache, METRICS)[0]


def _entries(rows: Sequence[Prediction], per: str) -> tuple[Mapping[str, str], Mapping[str, Sequence[str]]]:
    assert per in PER, per
    if per == "region":
        return {row.id: row.prediction for row in rows}, {row.id: row.references for row in rows}
    entries = {f"{row.id}/{k}": (row.prediction, [text]) for row in rows for k, text in enumerate(row.references)}
    return {i: text for i, (text, _) in entries.items()}, {i: texts for i, (_, texts) in entries.items()}
