"""Stage ``refine``: one compact sentence for each region, by any chat model behind an OpenAI-compatible endpoint.

A rewriter invents things. A rewrite that holds a noun or a colour that the description lacks is refused, and the description stays; the record of
the unit counts how many. Answers are kept by what was asked, so a job that lost the endpoint asks only for what it lacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from rb.core.chat_endpoint import ChatEndpoint, user
from rb.core.text import is_caption, one_line
from rb.mining.chunks import load_english
from rb.mining.inputs import InputShard
from rb.mining.record import ImageRecord, Region
from rb.mining.settings import RefineConfig
from rb.mining.stage import Stage, made_of
from rb.mining.work import Made

REFINE = "refine"
ANSWERS_FOLDER = "refine_answers"
# Words for colours: as an adjective none of them is a noun that the tagger would find.
_MAIN_COLOURS = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
    "grey",
    "gray",
)
_OTHER_COLOURS = ("violet", "beige", "tan", "gold", "golden", "silver", "turquoise", "teal", "maroon", "navy")
COLOURS = frozenset((*_MAIN_COLOURS, *_OTHER_COLOURS))


class Refine(Stage):
    """The stage. ``out``: the output folder, in which answers are kept."""

    name = REFINE

    def __init__(self, settings: RefineConfig, out: Path) -> None:
        super().__init__({"prompt": settings.prompt, "max_tokens": settings.max_tokens}, settings.model)
        self._settings = settings
        self.endpoint = ChatEndpoint(settings.url, settings.model, out / ANSWERS_FOLDER, settings.limit_s)

    def start(self) -> None:
        """Loads the tagger. ``ValueError``: it is missing."""
        _ = self._words

    def run(self, shard: InputShard, before: Sequence[ImageRecord]) -> Made:  # noqa: ARG002 (texts alone)
        """As of ``Stage``. ``EndpointError``: no answer; what was answered is kept."""
        regions = [region for record in before for region in record.kept if region.text]
        questions = [[user(self._settings.prompt.replace("{}", region.text or ""))] for region in regions]
        answers = self.endpoint.ask_all(
            questions, self._settings.parallel, temperature=0, seed=0, max_tokens=self._settings.max_tokens
        )
        for region, answer in zip(regions, answers, strict=True):
            self._take(region, one_line(answer.text).strip("\"' "))
        return made_of(before)

    def _take(self, region: Region, rewrite: str) -> None:
        if is_caption(rewrite) and not self._words.added(region.text or "", rewrite):
            region.refined = rewrite

    @cached_property
    def _words(self) -> AddedWords:
        return AddedWords()


class AddedWords:
    """Which nouns and colours a rewrite holds that its source lacks; by spaCy's tags and base forms (men: man)."""

    def __init__(self) -> None:
        self._tag = load_tagger()

    def added(self, source: str, rewrite: str) -> set[str]:
        """The words, in lower case."""
        known = {form for token in self._tag(source.lower()) for form in (token.text, token.lemma_)}
        return {
            token.text
            for token in self._tag(rewrite.lower())
            if (token.pos_ in ("NOUN", "PROPN") or token.text in COLOURS) and not {token.text, token.lemma_} & known
        }


@cache
def load_tagger() -> Any:
    """The small English model of spaCy without the parts that are not needed for tags. ``ValueError``: it is missing."""
    return load_english(exclude=["ner", "parser"])[1]
