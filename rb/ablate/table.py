"""The table of an ablation: per variant and modality the scores, mean and spread over seeds, beside the first variant's.

Reads the metrics files in the run folders, so it can be made at any time; what is missing shows as ``-``.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rb.ablate import reach
from rb.ablate.plan import Plan, Variant
from rb.ablate.runs import SHUFFLED
from rb.core.files import write_json, write_whole
from rb.core.metrics import of_ablations
from rb.core.modality import modality_spec
from rb.core.run_layout import RUN_METRICS
from rb.core.strict_json import read
from rb.evaluation.paper import read_paper

TABLE, DATA = "table.md", "table.json"
# What is true of the captions: (name in the metrics file, heading, of the predictions with shuffled boxes)
_WHOLE = (("true", "true", False), ("true_elsewhere", "true elsewhere", False))
_REGION = (
    ("right_object", "right object", False),
    ("right_object_hard", "hard", False),
    ("right_object", "boxes shuffled", True),
)
_ABSENT = "-"


def collect(plan: Plan, out: Path) -> list[dict[str, Any]]:
    """One entry for each variant, modality and score: ``values`` by seed, ``mean``, ``spread``, ``ratio`` to the first variant.

    ``spread`` is the standard deviation over seeds (of a sample; none for one seed). ``ratio`` is that of the means, over the seeds that
    both have.
    """
    entries: list[dict[str, Any]] = []
    first: dict[tuple[str, str], dict[int, float]] = {}
    for variant in plan.variants:
        for modality, question in plan.questions.items():
            for name, heading, shuffled in _headings(modality):
                if shuffled and not question.shuffle_boxes:
                    continue
                found = {seed: _value(plan, variant, seed, modality, name, shuffled, out) for seed in plan.seeds}
                values = {seed: value for seed, value in found.items() if value is not None}
                first.setdefault((modality, heading), values)
                entries.append(
                    {
                        "variant": variant.name,
                        "modality": modality,
                        "score": heading,
                        "values": {str(seed): value for seed, value in values.items()},
                        "mean": statistics.fmean(values.values()) if values else None,
                        "spread": statistics.stdev(values.values()) if len(values) > 1 else None,
                        "ratio": _ratio(values, first[modality, heading]),
                    }
                )
    return entries


def write(plan: Plan, out: Path) -> str:
    """Write ``table.md`` and ``table.json`` into ``out``; returns the first's text."""
    entries, reached = collect(plan, out), reach.collect(plan, out)
    text = "\n".join([*reach.format_reach(plan, reached), format_table(plan, entries)])
    data = {"plan": str(plan.path), "seeds": list(plan.seeds), "scores": entries}
    if reached:
        data["reach"] = reached
    write_json(out / DATA, data)
    write_whole(out / TABLE, text)
    return text


def format_table(plan: Plan, entries: Sequence[dict[str, Any]]) -> str:
    """Markdown: one table for each modality, a row for each variant; below it what the paper's Table 2 has of this modality."""
    reference = plan.variants[0].name
    lines = [
        f"Scores times 100, mean ± spread (standard deviation) over seeds {', '.join(map(str, plan.seeds))}; "
        f"in brackets the ratio to *{reference}*.",
        "",
    ]
    for modality in plan.questions:
        own = [entry for entry in entries if entry["modality"] == modality]
        headings = list(dict.fromkeys(entry["score"] for entry in own))
        lines += [f"**{modality.replace('_', ' ')}**", "", f"| variant | seeds | {' | '.join(headings)} |"]
        lines.append("|---|---|" + "---|" * len(headings))
        for variant in plan.variants:
            cells = {entry["score"]: entry for entry in own if entry["variant"] == variant.name}
            done = max(len(entry["values"]) for entry in cells.values())
            shown = [_cell(cells[heading], variant.name != reference) for heading in headings]
            lines.append(f"| {variant.name} | {done} | {' | '.join(shown)} |")
        paper = paper_line(modality)
        lines += ["", paper, ""] if paper else [""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _headings(modality: str) -> tuple[tuple[str, str, bool], ...]:
    metrics = tuple((metric.name, metric.label, False) for metric in of_ablations())
    return metrics + (_REGION if modality_spec(modality).regional else _WHOLE)


def _value(
    plan: Plan, variant: Variant, seed: int, modality: str, name: str, shuffled: bool, out: Path
) -> float | None:
    run = plan.training_name(variant, seed, len(variant.stages) - 1)
    path = out / "runs" / run / RUN_METRICS / f"{modality}{SHUFFLED if shuffled else ''}.json"
    if not path.is_file():
        return None
    found = read(path)
    scores = found.get("scores", {}) if isinstance(found, dict) else {}
    value = scores.get(name) if isinstance(scores, dict) else None
    return float(value) if isinstance(value, int | float) else None


def _ratio(values: dict[int, float], first: dict[int, float]) -> float | None:
    common = values.keys() & first.keys()
    below = statistics.fmean(first[seed] for seed in common) if common else 0.0
    return statistics.fmean(values[seed] for seed in common) / below if below else None


def _cell(entry: dict[str, Any], with_ratio: bool) -> str:
    if entry["mean"] is None:
        return _ABSENT
    spread = f" ± {100 * entry['spread']:.1f}" if entry["spread"] is not None else ""
    ratio = f" ({entry['ratio']:.2f})" if with_ratio and entry["ratio"] is not None else ""
    return f"{100 * entry['mean']:.1f}{spread}{ratio}"


def paper_line(modality: str) -> str | None:
    """The paper's Table 2 of one modality in a line: its scores with and without PaFE, and their ratio; none where it has no row."""
    paper = read_paper()
    for row in paper["table2"]:
        if row["modality"] == modality:
            scores = [
                f"{metric} {value:.1f} with PaFE, {row['without_pafe'][metric]:.1f} without ({row['without_pafe'][metric] / value:.2f})"
                for metric, value in row["with_pafe"].items()
            ]
            where = f"RegionBLIP {paper['table2_model']}, {row['dataset']} {row['split']}"
            return f"The paper's Table 2 ({where}): {'; '.join(scores)}."
    return None
