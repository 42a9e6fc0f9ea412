"""The page of one validation: a few examples per modality, the same every time, as picture with box, caption, references.

``rb/training/validate.py`` fills it; the loop has it written into the run folder and copied to MLflow. Runs no script, so it also shows in
MLflow's own viewer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rb.core.metric_names import VAL, value_name
from rb.core.metrics import while_training
from rb.core.modality import modality_spec
from rb.core.run_layout import RUN_VALIDATION
from rb.data.index import Loaded, ManifestReader
from rb.drawing.cards import card, prediction
from rb.drawing.page import Html, esc, section, write_page
from rb.pages.pictures import picture

EXAMPLES = 4  # of each modality: one row of cards


@dataclass(frozen=True)
class Shown:
    """One example of the page, ready to be shown: drawn once for the whole run.

    Attributes:
        manifest: number of its manifest in the modality's list; the same id may be in two.
        id: the sample id.
        picture: with its box, if it has one.
        references: all its captions.
    """

    manifest: int
    id: str
    picture: Html
    references: tuple[str, ...]


def choose_examples(
    modality: str, readers: Sequence[ManifestReader], captioned: Sequence[tuple[int, int]]
) -> list[Shown]:
    """Evenly spread ones of what is captioned, (number of the manifest, number of the example) each, drawn."""
    count = min(EXAMPLES, len(captioned))
    places = [captioned[i * len(captioned) // count] for i in range(count)]
    return [_shown(modality, manifest, readers[manifest].example(number)) for manifest, number in places]


def write_samples_page(
    run_dir: Path, step: int, samples: Mapping[str, Sequence[tuple[Shown, str]]], scores: Mapping[str, float]
) -> Path:
    """Write ``RUN_DIR/validation/step_0001200.html``, and return its path.

    Args:
        run_dir: the run folder.
        step: after how many steps.
        samples: per modality the examples and their predicted captions.
        scores: the validation's values by metric name.
    """
    html = f"<header><h1>{esc(run_dir.name)}, validation after step {step:,}</h1></header>"
    for modality, predicted in samples.items():
        shown = [f"{m.label} {100 * scores[value_name(VAL, m.name, modality)]:.1f}" for m in while_training()]
        title = ", ".join([modality.replace("_", " "), *shown])
        cards = "".join(
            card(one.picture, prediction("caption", caption, None), one.references, one.id)
            for one, caption in predicted
        )
        html += section(modality, title, f'<div class="cards">{cards}</div>')
    folder = run_dir / RUN_VALIDATION
    folder.mkdir(exist_ok=True)
    return write_page(folder / f"step_{step:07d}.html", f"{run_dir.name}, step {step:,}", html, script=False)


def _shown(modality: str, manifest: int, loaded: Loaded) -> Shown:
    box = loaded.item.box if loaded.item is not None and modality_spec(modality).regional else None
    return Shown(manifest, loaded.id, picture(modality, loaded, box, loaded.id, still=True), loaded.references)
