"""``rb reproduce``: a plan whose scores are known beforehand, such as the paper's Table 1: every cell PASS, FAIL or NOT RUN.

A cell passes where its data are those that the plan names, each expected score is within its tolerance, and the captions are those recorded before,
if the plan names a file of them. A cell whose files are not all there is not run, and the files are named.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rb.core import dist
from rb.core.config import FoundationConfig
from rb.core.exit_codes import FAILED, FINISHED
from rb.core.files import check_writable, write_json
from rb.core.output import aligned, say, say_json
from rb.core.run_file import load_run
from rb.core.run_paths import find_path, find_run_file
from rb.core.tasks import TASKS
from rb.core.urls import Url, location
from rb.data.predictions import read_predictions
from rb.jobs import table
from rb.jobs.plan import WITH_CHECKPOINT, Cell, Plan, find_plan, read_plan
from rb.jobs.results import Results
from rb.jobs.table import Entry, label
from rb.jobs.work import Worker

PASS, FAIL, NOT_RUN = "PASS", "FAIL", "NOT RUN"
BLIP2, RELEASED = "blip2", "released"
ROWS = {BLIP2: "models without training", RELEASED: "an imported released checkpoint"}
VERDICTS = "verdicts.json"
STANDARD_ERRORS = 3  # that a tolerance grows by where only some of the examples are scored
SHOWN = 5  # ids that are named


@dataclass(frozen=True)
class Verdict:
    """What came out of a cell.

    Attributes:
        state: ``PASS``, ``FAIL`` or ``NOT RUN``.
        lines: score by score what was found and expected; where it does not pass, why.
        ids: the first whose captions differ from those recorded.
    """

    cell: Cell
    state: str
    lines: tuple[str, ...]
    ids: tuple[str, ...] = ()


def run_reproduce(args: argparse.Namespace) -> int:
    """Exit codes: 0 every cell passes, 1 not."""
    plan = read_plan(find_plan(Path(args.name)))
    if args.limit is not None:
        if args.limit < 1:
            raise ValueError(f"--limit {args.limit}: must be at least 1")
        plan = replace(plan, tasks={name: replace(task, limit=args.limit) for name, task in plan.tasks.items()})
    out = (args.out or Path("reproduced") / plan.name).resolve()
    check_writable(out / VERDICTS)
    cells = [
        cell for cell in plan.cells if args.rows is None or (cell.variant in WITH_CHECKPOINT) == (args.rows == RELEASED)
    ]
    missing = {cell: lacking(plan, cell) for cell in cells}
    results = Results(plan, out)
    dist.init()
    Worker(plan, results, mlflow=False).work([cell for cell in cells if not missing[cell]])
    entries = table.write(results, cells)
    verdicts = [judge(results, entry, missing[entry.cell]) for entry in entries]
    write_json(out / VERDICTS, as_data(verdicts))
    if args.json:
        say_json(as_data(verdicts))
    else:
        say(as_text(verdicts))
        say(f"-> {out / VERDICTS}, {table.TEXT}, {table.PAGE}")
    return FINISHED if all(verdict.state == PASS for verdict in verdicts) else FAILED


def lacking(plan: Plan, cell: Cell) -> list[str]:
    """The files that a cell needs and that are not there, each with the place in the plan that names it."""
    model, task, found = plan.models[cell.model], plan.tasks[cell.task], []
    if model.checkpoint is not None and not Path(model.checkpoint).exists():
        found.append(f"{model.checkpoint} (models.{cell.model}.checkpoint)")
    if model.base is not None:
        try:
            file = find_run_file(model.base)
            found += _lacking_of(load_run(file, model.settings).model.foundation, file.parent)
        except ValueError as error:
            found.append(str(error))
    place = location(task.data)
    if not isinstance(place, Url) and not place.exists():
        found.append(f"{place} (tasks.{cell.task}.data)")
    return found


def _lacking_of(foundation: FoundationConfig, folder: Path) -> list[str]:
    """Parts of a foundation that are not there."""
    found = []
    for name, value in vars(foundation).items():
        try:
            if value:
                find_path(f"model.foundation.{name}", value, folder)
        except ValueError:
            found.append(f"{value} (model.foundation.{name})")
    return found


def judge(results: Results, entry: Entry, missing: Sequence[str]) -> Verdict:
    """Whether a cell came out as the plan says."""
    if missing:
        return Verdict(entry.cell, NOT_RUN, tuple(f"missing: {name}" for name in missing))
    if not entry.found:
        return Verdict(entry.cell, FAIL, (entry.cause or "it has no scores",))
    task = results.plan.tasks[entry.cell.task]
    wrong, lines = _wrong_data(results.plan, entry), list[str]()
    expected = task.expect.get(entry.cell.variant) or entry.paper
    for name, value in expected.items():
        found, most = entry.scores.get(name), tolerance(results.plan, entry, name)
        shown = "none" if found is None else f"{found:.1f}"
        line = f"{label(name)} {shown}, expected {value:g} within {most:.1f}"
        passes = found is not None and abs(found - value) <= most
        (lines if passes else wrong).append(line)
    lines += [f"{label(name)} {value:.1f}" for name, value in entry.scores.items() if name not in expected]
    ids = differing(results, entry)
    if ids:
        wrong.append(
            f"{len(ids):,} of {entry.found['num_examples']:,} captions are not the recorded ones: {', '.join(ids[:SHOWN])}"
        )
    if not expected:
        wrong.append("the plan expects nothing of this cell: give expect, or paper")
    return Verdict(entry.cell, FAIL if wrong else PASS, (*wrong, *lines), tuple(ids[:SHOWN]))


def tolerance(plan: Plan, entry: Entry, name: str) -> float:
    """How far a score (times 100) may be from the expected one: as stated, and of a part of the examples three standard errors more."""
    task = plan.tasks[entry.cell.task]
    stated, used = task.tolerance.get(name, 0.0), entry.found["num_examples"]
    whole = task.examples or (used if task.limit is None else math.inf)
    if used >= whole:
        return stated
    return stated + STANDARD_ERRORS * task.spread.get(name, 0.0) * math.sqrt((1 / used) * (1 - used / whole))


def differing(results: Results, entry: Entry) -> list[str]:
    """Ids whose caption is not the recorded one, or that no record has; in the order of the examples."""
    recorded = results.plan.tasks[entry.cell.task].recorded.get(entry.cell.variant)
    if recorded is None:
        return []
    before = {row.id: row.prediction for row in read_predictions(Path(recorded))[0]}
    return [
        row.id for row in read_predictions(results.predictions(entry.cell))[0] if before.get(row.id) != row.prediction
    ]


def as_data(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """The verdicts as data."""
    return [
        {"cell": v.cell.name, "state": v.state, "lines": list(v.lines), "differing_ids": list(v.ids)} for v in verdicts
    ]


def as_text(verdicts: Sequence[Verdict]) -> str:
    """A line for each verdict, and for each of its reasons; then how many of each there are."""
    rows = [
        (v.state if not i else "", v.cell.name if not i else "", line)
        for v in verdicts
        for i, line in enumerate(v.lines)
    ]
    states = [verdict.state for verdict in verdicts]
    return "\n".join(
        [*aligned(rows, 3), ", ".join(f"{states.count(state)} {state}" for state in (PASS, FAIL, NOT_RUN))]
    )


def _wrong_data(plan: Plan, entry: Entry) -> list[str]:
    """In what the data are not those that the plan names."""
    task, found, wrong = plan.tasks[entry.cell.task], entry.found, []
    if task.split is not None and found["split"] != task.split:
        wrong.append(f"split {found['split']}, expected {task.split}")
    wanted = None if task.examples is None else min(task.examples, task.limit or task.examples)
    if (
        TASKS[task.task].of_questions and task.limit is not None
    ):  # a limit is of sources, and each has any number of questions
        wanted = None
    used = found["num_examples"] + sum((found.get("left_out") or {}).values())
    if wanted is not None and used != wanted:
        wrong.append(f"{used:,} examples, expected {wanted:,}")
    return wrong
