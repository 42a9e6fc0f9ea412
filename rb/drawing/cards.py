"""Cards of a gallery: a picture, the captions predicted for it, the references. Used by every page that shows examples."""

from __future__ import annotations

from collections.abc import Sequence

from rb.core.metrics import ranking
from rb.drawing.page import Html, esc, note

MAX_REFERENCES = 5
_BOXES = Html('<label class="boxes"><input type="checkbox" checked>boxes</label>')


def boxes_switch(cards: str) -> Html:
    """Hides and shows the boxes of a group's cards; empty where no picture has one."""
    # Attributes of our own making: a quotation mark of any text is escaped.
    return _BOXES if ' class="box ' in cards or ' data-box="' in cards else Html("")


def group(title: str, views: Sequence[tuple[str, str, str]], cards: str, about: str = "", problem: str = "") -> Html:
    """Cards under a title, with the controls that choose among them.

    Args:
        title: of the group.
        views: (view, button, sentence) each: the button shows the cards with ``data-VIEW``, in its order, under the sentence. The first
            is on at the start, so cards of the others only start hidden. Several get buttons.
        cards: of ``card``.
        about: follows the sentence.
        problem: why pictures are missing.
    """
    controls = boxes_switch(cards) + (_switch(views) if len(views) > 1 else "")
    return Html(
        f'<div class="group"><div class="bar"><h3>{esc(title)}</h3><div class="controls">{controls}</div></div>'
        f'<p class="soft"><span class="which">{esc(views[0][2])}</span> {esc(about)}</p>'
        f'{note(problem, warn=True) if problem else ""}<div class="cards">{cards}</div></div>\n'
    )


def _switch(views: Sequence[tuple[str, str, str]]) -> Html:
    buttons = "".join(
        f'<button type="button" data-view="{esc(view)}" data-which="{esc(which)}" aria-pressed="{"false" if k else "true"}">'
        f"{esc(label)}</button>"
        for k, (view, label, which) in enumerate(views)
    )
    return Html(f'<div class="switch" role="group" aria-label="which examples">{buttons}</div>')


def prediction(model: str, text: str, score: float | None, faint: bool = False) -> Html:
    """One predicted caption: which model made it, its value of the metric that ranks examples (shown times 100), the text."""
    shown = "" if score is None else f"{ranking().label} {100 * score:.0f}"
    return Html(
        f"<div>{caption_line(model, shown)}"
        f'<div class="prediction{" faint" if faint else ""}">{esc(text or "(nothing)")}</div></div>'
    )


def caption_line(left: str, right: str = "") -> Html:
    """The small line above a text: what it is, and a number or box."""
    return Html(f'<div class="who"><span>{esc(left)}</span><span>{esc(right)}</span></div>')


def card(
    picture: Html, texts: str, references: Sequence[str], sample_id: str, attributes: str = "", behind: str = ""
) -> Html:
    """Picture, texts (HTML; predictions), references if there are any, what stands ``behind`` them (HTML), id."""
    known = listed("references", references) if references else ""
    return Html(
        f'<article class="card" {attributes}><div class="media">{picture}</div>'
        f'<div class="words">{texts}{known}{behind}</div>'
        f'<div class="id mono">{esc(sample_id)}</div></article>'
    )


def listed(title: str, texts: Sequence[str]) -> Html:
    """Texts under a small line, each once, a few of them."""
    different = list(dict.fromkeys(texts))
    more = len(different) - MAX_REFERENCES
    items = "".join(f"<li>{esc(text)}</li>" for text in different[:MAX_REFERENCES])
    items += f"<li>and {more} more</li>" if more > 0 else ""
    return Html(f'<div><div class="who">{esc(title)}</div><ul>{items}</ul></div>')


def missing(why: str) -> Html:
    """What stands in a picture's place."""
    return Html(f'<div class="missing">{esc(why)}</div>')
