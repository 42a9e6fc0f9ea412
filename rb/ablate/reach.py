"""How many steps each variant of an ablation needs to reach the first variant's last validation score.

Read from the journals of the trainings, so the variants must validate while they train (``validation.every``). Steps of a variant in
several stages are counted over its stages. The resolution is ``validation.every`` steps.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rb.ablate.plan import Plan, Variant
from rb.core.metric_names import VAL, value_name
from rb.core.run_layout import RUN_JOURNAL
from rb.tracking.journal import metric_points


@dataclass(frozen=True)
class Curve:
    """A validation score over the steps of one variant with one seed: ascending (step, value), and the steps trained in all."""

    points: tuple[tuple[int, float], ...]
    trained: int

    def reaches(self, target: float) -> int | None:
        """The first step whose score is at least ``target``; none where no step has it."""
        return next((step for step, value in self.points if value >= target), None)


def read_curve(plan: Plan, variant: Variant, seed: int, modality: str, out: Path) -> Curve:
    """The score ``val/<modality>/<plan.reach>`` of one variant with one seed, over all its stages."""
    assert plan.reach is not None
    points: list[tuple[int, float]] = []
    before = 0
    for stage in range(len(variant.stages)):
        _, config = plan.training(variant, seed, stage, out)
        journal = out / "runs" / config.name / RUN_JOURNAL
        found = metric_points(journal).get(value_name(VAL, plan.reach, modality), [])
        points += [(before + point.step, point.value) for point in found]
        assert config.train.max_steps is not None, "checked when the plan was read"
        before += config.train.max_steps
    return Curve(tuple(points), before)


def collect(plan: Plan, out: Path) -> list[dict[str, Any]]:
    """One entry for each variant and modality, with ``steps`` (by seed; null: not reached), ``best`` and ``last`` score by seed.

    The target is the last score of the first variant with the same seed. Empty where the plan has no ``reach``.
    """
    if plan.reach is None:
        return []
    entries: list[dict[str, Any]] = []
    for modality in plan.questions:
        targets: dict[int, float] = {}
        for variant in plan.variants:
            curves = {seed: read_curve(plan, variant, seed, modality, out) for seed in plan.seeds}
            curves = {seed: curve for seed, curve in curves.items() if curve.points}
            if variant is plan.variants[0]:
                targets = {seed: curve.points[-1][1] for seed, curve in curves.items()}
            entries.append(
                {
                    "variant": variant.name,
                    "modality": modality,
                    "score": plan.reach,
                    "trained": max((curve.trained for curve in curves.values()), default=0),
                    "targets": {str(seed): targets[seed] for seed in curves if seed in targets},
                    "steps": {str(s): curve.reaches(targets[s]) for s, curve in curves.items() if s in targets},
                    "best": {str(seed): max(value for _, value in curve.points) for seed, curve in curves.items()},
                    "last": {str(seed): curve.points[-1][1] for seed, curve in curves.items()},
                }
            )
    return entries


def format_reach(plan: Plan, entries: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown lines: for each modality and variant the steps to the first variant's last score, seed by seed."""
    if not entries:
        return []
    first = plan.variants[0].name
    lines = [
        f"**Steps until validation {plan.reach} reaches the last one of *{first}*** (same seed; '-': not reached in the steps trained). "
        f"Scores times 100, mean over seeds.",
        "",
        f"| modality | variant | steps trained | steps needed, by seed | best {plan.reach} | last {plan.reach} |",
        "|---|---|---|---|---|---|",
    ]
    for entry in entries:
        steps = ", ".join("-" if step is None else f"{step:,}" for step in entry["steps"].values())
        best, last = (_mean(entry[name]) for name in ("best", "last"))
        modality = entry["modality"].replace("_", " ")
        lines.append(f"| {modality} | {entry['variant']} | {entry['trained']:,} | {steps} | {best} | {last} |")
    return [*lines, ""]


def _mean(values: dict[str, float]) -> str:
    return f"{100 * statistics.fmean(values.values()):.1f}" if values else "-"
