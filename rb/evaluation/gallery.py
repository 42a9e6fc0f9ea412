"""The report's gallery: examples of a run's prediction files as cards: image with box or cloud, references, what each file says.

Reads `RUN_DIR/predictions/*.jsonl`; pictures come from the manifest that a file's meta names. Where that is gone or has changed, the cards
say so instead.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rb.core.modality import MODALITIES, modality_spec
from rb.data.formats import RUN_METRICS, RUN_PREDICTIONS, Prediction, read_predictions
from rb.data.images import decode_image
from rb.data.index import Loaded, ManifestReader
from rb.data.points import decode_points
from rb.drawing.page import Html, esc, note
from rb.drawing.pictures import cloud_canvas, image_with_box
from rb.evaluation.scoring import examples_path

PICTURE_BUDGET = 6_000_000  # bytes of pictures on a page; a browser opens 10 MB pages at once
MAX_REFERENCES = 5
# Objects stand on their y axis (Objaverse), rooms on z (ScanNet).
UP = {"point_cloud": "y", "point_cloud_region": "z"}


@dataclass
class PredictionFile:
    """One file, by id; ``scores``: id to CIDEr where it was scored."""

    path: Path
    rows: dict[str, Prediction]
    meta: dict[str, Any]
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Who speaks: the variant, and the checkpoint's step."""
        variant = self.meta.get("variant", "checkpoint")
        step = (self.meta.get("checkpoint") or {}).get("step")
        names = {"base": "base", "crops": "base on crops" if step is None else "RegionBLIP on crops"}
        return names.get(variant, "RegionBLIP" if step is None else f"RegionBLIP, step {step:,}")

    @property
    def rank(self) -> tuple[int, str]:
        """Trained models speak first."""
        return (["checkpoint", "base", "crops"].index(self.meta.get("variant", "checkpoint")), self.path.name)


def gallery(run_dir: Path, count: int) -> Html:
    """All sets of predictions, ``count`` examples of each, evenly spread over the file (not picked by score)."""
    groups: dict[tuple[int, str, str, str], list[PredictionFile]] = {}
    parts: list[str] = []
    for path in sorted((run_dir / RUN_PREDICTIONS).glob("*.jsonl")):
        try:
            file = read_file(path, run_dir)
        except (ValueError, OSError) as error:
            parts.append(note(f"{path.name} is left out: {error}", warn=True))
            continue
        first = next(iter(file.rows.values()), None)
        if first:
            order = list(MODALITIES).index(first.modality)
            groups.setdefault((order, first.modality, first.dataset, first.split), []).append(file)
    budget = PICTURE_BUDGET
    for (_, modality, dataset, split), files in sorted(groups.items()):
        html = _group(
            f"{modality.replace('_', ' ')} · {dataset} {split}", sorted(files, key=lambda f: f.rank), count, budget
        )
        budget -= len(html)
        parts.append(html)
    if not groups:
        parts.append(note(f"No predictions yet: python -m eval.predict --checkpoint {run_dir} writes them."))
    return Html("".join(parts))


def read_file(path: Path, run_dir: Path) -> PredictionFile:
    """A predictions file with its meta and the scores per example, where they were computed."""
    rows, meta = read_predictions(path)
    if not isinstance(meta.get("checkpoint") or {}, dict) or meta.get("variant", "checkpoint") not in (
        "checkpoint",
        "base",
        "crops",
    ):
        raise ValueError("its meta file holds another variant or checkpoint than this version writes; predict again")
    file = PredictionFile(path, {row.id: row for row in rows}, meta)
    scored = examples_path(run_dir / RUN_METRICS / f"{path.stem}.json")
    if scored.is_file():
        for line in scored.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("CIDEr"), (int, float)):
                file.scores[str(row.get("id"))] = float(row["CIDEr"])
    return file


def _group(title: str, files: Sequence[PredictionFile], count: int, budget: int) -> Html:
    lead = files[0]
    ids = list(lead.rows)
    count = min(count, len(ids))
    chosen = [ids[round(i * (len(ids) - 1) / max(1, count - 1))] for i in range(count)]
    sources, problem = _load(lead, chosen)
    cards = []
    for sample_id in dict.fromkeys(chosen):
        card = _card(lead.rows[sample_id], files, sources.get(sample_id), with_picture=budget > 0)
        budget -= len(card)
        cards.append(card)
    choice = '<select class="sort" aria-label="order"><option value="">in the file\'s order</option>'
    choice += '<option value="best">best CIDEr first</option><option value="worst">worst CIDEr first</option></select>'
    return Html(
        f'<div class="group"><div class="bar"><h3>{esc(title)}</h3>{choice if lead.scores else ""}</div>'
        f'<p class="soft">{len(cards)} of {len(ids):,} examples, evenly spread over the file; not picked by score.</p>'
        f'{note(problem, warn=True) if problem else ""}<div class="cards">{"".join(cards)}</div></div>\n'
    )


def _load(file: PredictionFile, ids: Sequence[str]) -> tuple[dict[str, Loaded], str]:
    """The stored examples by id, and why some are missing."""
    place = file.meta.get("data")
    if not place:
        return {}, f"{file.path.name} does not name its data (no meta file), so there are no pictures."
    try:
        reader = ManifestReader(Path(place), verify=False)
        try:
            if file.meta.get("manifest_digest", reader.digest) != reader.digest:
                return {}, f"{place} is not what it was when {file.path.name} was predicted, so there are no pictures."
            return _find(reader, file, ids), ""
        finally:
            reader.close()
    except (ValueError, OSError) as error:
        return {}, f"The pictures cannot be read: {error}"


def _find(reader: ManifestReader, file: PredictionFile, ids: Sequence[str]) -> dict[str, Loaded]:
    """Prediction writes the manifest's order, so an id's place in the file is its number; otherwise all numbers are searched."""
    numbers = {sample_id: number for number, sample_id in enumerate(file.rows)}
    found = {}
    for sample_id in ids:
        if numbers[sample_id] < reader.num_examples:
            loaded = reader.example(numbers[sample_id])
            if loaded.id == sample_id:
                found[sample_id] = loaded
    wanted = {file.rows[sample_id].source_id for sample_id in ids if sample_id not in found}
    if wanted:
        records = {n for n in range(len(reader.index.records)) if reader.index.source_id(n) in wanted}
        samples = reader.index.samples
        for number in range(len(samples)):
            if int(samples[number]["caption"]) == 0 and int(samples[number]["record"]) in records:
                loaded = reader.sample(number)
                found.setdefault(loaded.id, loaded)
    return found


def _card(row: Prediction, files: Sequence[PredictionFile], loaded: Loaded | None, with_picture: bool) -> Html:
    said = []
    for file in files:
        if row.id in file.rows:
            score = f"CIDEr {100 * file.scores[row.id]:.0f}" if row.id in file.scores else ""
            text = file.rows[row.id].prediction or "(nothing)"
            said.append(
                f'<div><div class="who"><span>{esc(file.label)}</span><span>{score}</span></div>'
                f'<div class="said">{esc(text)}</div></div>'
            )
    different = list(dict.fromkeys(row.references))
    more = len(different) - MAX_REFERENCES
    references = "".join(f"<li>{esc(text)}</li>" for text in different[:MAX_REFERENCES])
    references += f"<li>and {more} more</li>" if more > 0 else ""
    picture = _picture(row, loaded) if with_picture else '<div class="missing">left out to keep the page small</div>'
    return Html(
        f'<article class="card" data-score="{files[0].scores.get(row.id, 0.0):.4f}"><div class="media">{picture}</div>'
        f'<div class="words">{"".join(said)}<div><div class="who">references</div><ul>{references}</ul></div></div>'
        f'<div class="id mono">{esc(row.id)}</div></article>'
    )


def _picture(row: Prediction, loaded: Loaded | None) -> str:
    if loaded is None:
        return '<div class="missing">no picture available</div>'
    alt = f"{row.modality.replace('_', ' ')} {row.id}"
    try:
        if modality_spec(row.modality).source == "image":
            return image_with_box(decode_image(loaded.media, loaded.where), row.box, alt)
        return cloud_canvas(decode_points(loaded.media, loaded.where), row.box, UP.get(row.modality, "y"), alt)
    except ValueError as error:
        return f'<div class="missing">{esc(error)}</div>'
