"""What a run's journal says of one step: how it was divided, and its losses where they were written by themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from rb.core.config import TrainConfig
from rb.core.metric_names import GRAD_NORM, RATE, TRAIN, parse_name, value_name
from rb.core.run_layout import RUN_JOURNAL
from rb.core.schedules import Turn
from rb.core.step_layout import StepLayout
from rb.tracking.bad_steps import BadStep, read_bad_steps
from rb.tracking.journal import metric_points, read_rows

_RANKS, _MICRO_BATCH = "ranks", "train.micro_batch_size"  # a tag and a parameter that every start of a run writes


def layout_of(run_dir: Path, step: int, train: TrainConfig) -> StepLayout:
    """How a step (from 1) was divided: ranks and micro-batch may have changed at a resume. Of a step never made: as the last start would.

    Raises:
        ValueError: the journal does not say it.
    """
    micro, starts = (
        train.micro_batch_size,
        list[tuple[int, int, int | Literal["auto"]]](),
    )  # (step after which it starts, ranks, micro-batch)
    for row, _ in read_rows(run_dir / RUN_JOURNAL, on_bad=lambda _: None):
        if row["kind"] == "params" and row["values"].get(_MICRO_BATCH, "").isdecimal():
            micro = int(row["values"][_MICRO_BATCH])
        elif row["kind"] == "tags" and row["values"].get(_RANKS, "").isdecimal():
            starts.append((0, int(row["values"][_RANKS]), micro))
        elif row["kind"] == "resume" and starts:
            starts[-1] = (row["step"], *starts[-1][1:])
    made_by = [(ranks, size) for after, ranks, size in starts if after < step]
    if not made_by:
        raise ValueError(f"{run_dir / RUN_JOURNAL}: does not say on how many ranks step {step} was made")
    ranks, size = made_by[-1]
    return replace(train, micro_batch_size=size).layout(ranks)


def bad_step_of(run_dir: Path, step: int) -> BadStep | None:
    """The record of a step that was skipped."""
    return next((bad for bad in read_bad_steps(run_dir / RUN_JOURNAL) if bad.step == step), None)


def losses_of(run_dir: Path, step: int, turn_at: Callable[[int], Turn]) -> dict[str, float]:
    """The logged losses of a step, means over ranks; and ``grad_norm`` where it was the only step since the last row.

    Empty where the row of this step has means over several steps of the modality.
    """
    points = metric_points(run_dir / RUN_JOURNAL, on_bad=lambda _: None)
    logged = [point.step for point in points.get(value_name(TRAIN, RATE), [])]
    before = max((one for one in logged if one < step), default=0)
    modality = turn_at(step - 1).modality
    if step not in logged or sum(turn_at(one).modality == modality for one in range(before, step)) != 1:
        return {}
    found = {}
    for name, series in points.items():
        parts, value = parse_name(name), next((point.value for point in series if point.step == step), None)
        if parts is None or value is None or parts.stage != TRAIN:
            continue
        if parts.term and parts.place == modality:
            found[parts.term] = value
        elif parts.value == GRAD_NORM and before == step - 1:
            found[GRAD_NORM] = value
    return found
