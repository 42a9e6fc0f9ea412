"""``rb data show``: a page of a manifest's examples, each with its picture or cloud, its box, and all its captions or questions.

For looking at data before training on them. Every record shown is checked against its digest as it is when training reads it.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rb.core.seeding import generator
from rb.core.urls import Location
from rb.data.formats import REJECTED_FILE, Question, find_manifest, require_media
from rb.data.index import ManifestReader
from rb.drawing.cards import boxes_switch, caption_line, card, listed
from rb.drawing.page import Html, esc, facts, note, write_page
from rb.pages.pictures import picture


def show_data(manifest: Location, out: Path, index: int | None = None, count: int = 24, seed: int | None = None) -> int:
    """Write the page; returns how many examples it shows.

    Args:
        manifest: file or its folder.
        index: only this example; none for ``count`` of them.
        seed: of a random choice; none for evenly spread examples.

    Raises:
        ValueError: no such example; a record that was altered; a folder that does not exist.
    """
    reader = ManifestReader(find_manifest(manifest))
    require_media(reader.manifest, reader.path)
    try:
        total = reader.num_examples
        if index is not None and not 0 <= index < total:
            raise ValueError(f"--index {index}: {reader.path} has examples 0 to {total - 1}")
        if count < 1:
            raise ValueError(f"--count {count}: must be at least 1")
        if not out.parent.is_dir():
            raise ValueError(f"--out {out}: {out.parent} is no folder; make it first")
        count = min(count, total)
        if index is not None:
            numbers, why = [index], f"example {index} of 0 to {total - 1}"
        elif seed is not None:
            numbers = sorted(generator("show", seed).choice(total, count, replace=False).tolist())
            why = f"drawn at random with seed {seed}"
        else:
            numbers = [round(i * (total - 1) / max(1, count - 1)) for i in range(count)]
            why = "evenly spread over the set"
        cards = "".join(_card(reader, number) for number in numbers)
        about = reader.manifest
        head = facts({"modality": about.modality, "split": about.split or "-", **about.counts, "shown": len(numbers)})
        body = f"<h1>{esc(about.name)}</h1>{head}{note(f'{reader.path}: {why}.')}"
        if about.rejected:
            reasons = ", ".join(f"{reason} {number:,}" for reason, number in about.rejected.items())
            body += note(f"Left out when the set was made, listed in {REJECTED_FILE}: {reasons}.")
        body += f'<div class="group"><div class="bar">{boxes_switch(cards)}</div><div class="cards">{cards}</div></div>'
        write_page(out, f"{about.name} {about.split or ''}".strip(), body)
        return len(numbers)
    finally:
        reader.close()


def _card(reader: ManifestReader, number: int) -> Html:
    loaded = reader.example(number)
    box = loaded.item.box if loaded.item else None
    numbers = loaded.record.domain or "" if box is None else f"box {', '.join(f'{value:g}' for value in box)}"
    head = Html(f"<div>{caption_line(f'example {number}', numbers)}</div>")
    texts = [_asked(item) for item in loaded.record.questions] or loaded.references
    whole = loaded.record.captions if loaded.item else []
    behind = listed("of the whole source", whole) if whole else ""
    return card(picture(reader.manifest.modality, loaded, box, loaded.id), head, texts, loaded.id, behind=behind)


def _asked(item: Question) -> str:
    """A question with its answers, the most frequent first."""
    answers = ", ".join(f"{answer} ({count})" for answer, count in Counter(item.answers).most_common())
    return f"{item.question} {answers}"
