"""The report's gallery: examples of a run's predictions as cards, as in the paper's figures 2 to 5.

A card holds the picture, the captions predicted after and before training, and the references; per set a switch shows random examples, the
best or the worst. Reads `RUN_DIR/predictions/*.jsonl` and the scores per example where there are any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rb.core.metrics import LOWER, ranking
from rb.core.modality import MODALITIES, modality_spec
from rb.core.run_layout import RUN_METRICS, RUN_PREDICTIONS
from rb.core.seeding import generator
from rb.core.strict_json import parse_lines
from rb.data.formats import Prediction, read_predictions
from rb.data.index import Loaded
from rb.drawing.cards import card, group, prediction
from rb.drawing.page import Html, note
from rb.evaluation.scoring import VARIANTS, examples_path
from rb.evaluation.table import ROW_NAMES
from rb.pages.pictures import LEFT_OUT, PICTURE_BUDGET, load_examples, picture
from rb.sources.table import source_of

VIEWS = {"random": "Random", "best": "Best", "worst": "Worst"}


@dataclass
class PredictionFile:
    """One file, by id; ``scores``: id to its value of the metric that ranks examples, where it was scored."""

    path: Path
    rows: dict[str, Prediction]
    meta: dict[str, Any]
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def variant(self) -> str:
        """Out of ``VARIANTS``; a file without a meta file counts as a trained model's."""
        return str(self.meta.get("variant", "checkpoint"))

    @property
    def when(self) -> str:
        """``after`` or ``before`` training, or ``control``."""
        if self.variant not in ("checkpoint", "base", "crops"):
            return "control"
        return "after" if self.meta.get("checkpoint") or self.variant == "checkpoint" else "before"

    @property
    def label(self) -> str:
        """Which model made it: the row of the table, and the checkpoint's step."""
        checkpoint = self.meta.get("checkpoint") or {}
        name = ROW_NAMES.get((self.variant, bool(checkpoint)), self.variant)
        step = checkpoint.get("step")
        return name + (f", step {step:,}" if isinstance(step, int) else "")

    @property
    def rank(self) -> tuple[int, int, str]:
        """Trained models stand first, controls last."""
        order = ("checkpoint", *VARIANTS)
        return ["after", "before", "control"].index(self.when), order.index(self.variant), self.path.name


def gallery(run_dir: Path, count: int) -> Html:
    """All sets of predictions; of each ``count`` random examples, and where they were scored as many of the best and of the worst."""
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
    for done, ((_, modality, dataset, split), files) in enumerate(sorted(groups.items())):
        title = f"{modality.replace('_', ' ')} · {dataset} {split}"
        html = _group(title, sorted(files, key=lambda f: f.rank), count, budget // (len(groups) - done))
        budget -= len(html)
        parts.append(html)
    if not groups:
        parts.append(
            note(
                f"No predictions yet: rb predict --checkpoint {run_dir} --data MANIFEST --modality MODALITY --out {run_dir}/predictions/NAME.jsonl writes them."
            )
        )
    return Html("".join(parts))


def read_file(path: Path, run_dir: Path) -> PredictionFile:
    """A predictions file with its meta and the scores per example, where they were computed."""
    rows, meta = read_predictions(path)
    if not isinstance(meta.get("checkpoint") or {}, dict) or meta.get("variant", "checkpoint") not in VARIANTS:
        raise ValueError("its meta file holds another variant or checkpoint than this version writes; predict again")
    file = PredictionFile(path, {row.id: row for row in rows}, meta)
    scored = examples_path(run_dir / RUN_METRICS / f"{path.stem}.json")
    if scored.is_file():
        for _, row in parse_lines(scored.read_bytes(), str(scored)):
            if isinstance(row, dict) and isinstance(row.get(ranking().name), (int, float)):
                file.scores[str(row.get("id"))] = float(row[ranking().name])
    return file


def choose(ids: Sequence[str], scores: Mapping[str, float], count: int) -> dict[str, list[str]]:
    """View to its ids in order. The random ones are the same for the same ids, whoever predicted and scored them."""
    pool = sorted(ids)
    places = generator("gallery", *pool[:1], len(pool)).permutation(len(pool))[:count]
    views = {"random": [pool[place] for place in places]}
    sign = -1 if ranking().better == LOWER else 1
    scored = sorted((i for i in pool if i in scores), key=lambda i: sign * scores[i])
    if scored:
        views |= {"best": scored[::-1][:count], "worst": scored[:count]}
    return views


def _group(title: str, files: Sequence[PredictionFile], count: int, budget: int) -> Html:
    lead = files[0]
    views = choose(list(lead.rows), lead.scores, count)
    shown = list(dict.fromkeys(sample_id for ids in views.values() for sample_id in ids))  # the random ones first
    sources, problem = load_examples(lead.path, lead.rows, lead.meta, shown)
    cards = []
    for sample_id in shown:
        places = {view: ids.index(sample_id) for view, ids in views.items() if sample_id in ids}
        card = _card(lead.rows[sample_id], files, places, sources.get(sample_id), with_picture=budget > 0)
        budget -= len(card)
        cards.append(card)
    spec = modality_spec(next(iter(lead.rows.values())).modality)
    entries = [(view, VIEWS[view], _which(view, views, lead)) for view in views]
    about = " ".join(filter(None, [_before(files), source_of(spec.name).page_hint]))
    return group(title, entries, "".join(cards), about, problem)


def _which(view: str, views: Mapping[str, Sequence[str]], lead: PredictionFile) -> str:
    number = f"{len(views[view]):,} of {len(lead.rows):,} examples, "
    if view == "random":
        return number + "picked at random, not by score."
    return number + f"the {view} by the {ranking().label} of {lead.label}, {view} first."


def _before(files: Sequence[PredictionFile]) -> str:
    """One sentence on what stands for the time before training."""
    if files[0].when != "after":
        return "No predictions of a trained model."
    untrained = [file.label for file in files if file.when == "before"]
    if untrained:
        return f"Before training: {', '.join(untrained)}."
    return "Before training: no predictions of the untrained model for this set."


def _card(
    row: Prediction,
    files: Sequence[PredictionFile],
    places: Mapping[str, int],
    loaded: Loaded | None,
    with_picture: bool,
) -> Html:
    predictions = "".join(
        prediction(
            f"{file.when} · {file.label}",
            file.rows[row.id].prediction,
            file.scores.get(row.id),
            faint=file.when != "after",
        )
        for file in files
        if row.id in file.rows
    )
    shown = picture(row.modality, loaded, row.box, row.id) if with_picture else LEFT_OUT
    data = " ".join(f'data-{view}="{place}"' for view, place in places.items())
    return card(shown, predictions, row.references, row.id, data + ("" if "random" in places else " hidden"))
