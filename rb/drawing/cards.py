"""Cards of a gallery: a picture, the predictions with their model, the references. Used by every page that shows examples."""

from __future__ import annotations

from collections.abc import Sequence

from rb.drawing.page import Html, esc

MAX_REFERENCES = 5
BOXES = Html('<label class="boxes"><input type="checkbox" checked>boxes</label>')  # hides and shows a group's boxes


def switch(views: Sequence[tuple[str, str, str]]) -> Html:
    """Buttons of a ``.group`` that show the cards with ``data-VIEW`` (its order); the first is on. (view, button, sentence) each.

    The sentence goes into the group's ``.which``.
    """
    buttons = "".join(
        f'<button type="button" data-view="{esc(view)}" data-which="{esc(which)}" aria-pressed="{"false" if k else "true"}">'
        f"{esc(label)}</button>"
        for k, (view, label, which) in enumerate(views)
    )
    return Html(f'<div class="switch" role="group" aria-label="which examples">{buttons}</div>')


def voice(who: str, text: str, score: float | None, faint: bool = False) -> Html:
    """One prediction: which model made it, its CIDEr (0 to 10; shown times 100), its text."""
    shown = "" if score is None else f"CIDEr {100 * score:.0f}"
    return Html(
        f'<div><div class="who"><span>{esc(who)}</span><span>{shown}</span></div>'
        f'<div class="said{" faint" if faint else ""}">{esc(text or "(nothing)")}</div></div>'
    )


def card(shown: Html, said: str, references: Sequence[str], sample_id: str, attributes: str = "") -> Html:
    """Picture, predictions (HTML), references, id."""
    different = list(dict.fromkeys(references))
    more = len(different) - MAX_REFERENCES
    listed = "".join(f"<li>{esc(text)}</li>" for text in different[:MAX_REFERENCES])
    listed += f"<li>and {more} more</li>" if more > 0 else ""
    return Html(
        f'<article class="card" {attributes}><div class="media">{shown}</div>'
        f'<div class="words">{said}<div><div class="who">references</div><ul>{listed}</ul></div></div>'
        f'<div class="id mono">{esc(sample_id)}</div></article>'
    )


def missing(why: str) -> Html:
    """A sentence in place of a picture."""
    return Html(f'<div class="missing">{esc(why)}</div>')
