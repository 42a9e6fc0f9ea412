"""The one table of a plan: for each task its cells with their scores, the paper's beside them, and the cause where a cell has none.

Written as text, JSON and a page. It is made from the output folder alone, and holds neither times nor places of this machine: a job that was killed
and goes on writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rb.core.files import write_json, write_whole
from rb.core.locks import FileLock
from rb.core.metrics import CARD, METRICS, REPORT, TABLE
from rb.core.output import aligned
from rb.core.strict_json import read
from rb.core.tasks import TASKS
from rb.drawing import page
from rb.evaluation.paper import read_paper, table1_scores
from rb.evaluation.vqa import ACCURACY, LAVIS, accuracy_name
from rb.jobs.plan import BASE, CROPS, OURS, Cell, Plan
from rb.jobs.results import RECORDS, Results

TEXT, DATA, PAGE = "table.txt", "table.json", "table.html"
SCORED, FAILED, MISSING = "scored", "failed", "missing"
ROWS = {
    OURS: "RegionBLIP",
    BASE: "BLIP-2",
    CROPS: "BLIP-2 on crops",
}  # variant -> the paper's row; it has no shuffled boxes
ABSENT = "-"
PAPER = "paper"
# The score that the paper's VQA accuracy is compared with. It does not say which normalisation it has; LAVIS's made BLIP-2's published figures.
PAPER_VQA = accuracy_name(LAVIS)


@dataclass(frozen=True)
class Entry:
    """A cell as the table shows it.

    Attributes:
        state: ``scored``, ``failed`` or ``missing``.
        cause: why it failed.
        found: its ``metrics.json``; empty where it is not scored.
        paper: the paper's scores of this model, data and variant, times 100; empty where it has none.
    """

    cell: Cell
    state: str
    cause: str
    found: Mapping[str, Any]
    paper: Mapping[str, float]

    @property
    def scores(self) -> dict[str, float]:
        """What was scored, times 100."""
        return _percent(self.found.get("scores", {}))


def collect(results: Results, cells: Sequence[Cell]) -> list[Entry]:
    """What is there of each cell."""
    return [_entry(results, cell) for cell in cells]


def write(results: Results, cells: Sequence[Cell]) -> list[Entry]:
    """Write the three files; one process at a time, so that the last of several that end together has seen all cells."""
    with FileLock(results.out / RECORDS / ".table.lock"):
        entries = collect(results, cells)
        write_json(results.out / DATA, as_data(results.plan, entries))
        write_whole(results.out / TEXT, as_text(results.plan, entries))
        page.write_page(
            results.out / PAGE, f"Evaluation {results.plan.name}", as_html(results.plan, entries), script=False
        )
    return entries


def as_data(plan: Plan, entries: Sequence[Entry]) -> dict[str, Any]:
    """The table as data."""
    facts = (
        "num_examples",
        "num_references",
        "dataset",
        "split",
        "set_sha256",
        "reference_policy",
        "decoding",
        "tokeniser",
        "left_out",
        "parts",
        "chance",
        "skipped",
    )
    return {
        "plan": plan.name,
        "cells": [
            {
                "cell": entry.cell.name,
                "model": entry.cell.model,
                "task": entry.cell.task,
                "variant": entry.cell.variant,
                "state": entry.state,
                **({"cause": entry.cause} if entry.cause else {}),
                "scores": entry.scores,
                "paper": dict(entry.paper),
                **{name: entry.found[name] for name in facts if name in entry.found},
                **({"step": (entry.found.get("checkpoint") or {}).get("step")} if entry.found else {}),
            }
            for entry in entries
        ],
    }


def as_text(plan: Plan, entries: Sequence[Entry]) -> str:
    """The table as plain text."""
    lines = [f"{_counted(entries)}; scores times 100.{_of_the_paper(entries)}"]
    for task, own in _by_task(entries).items():
        names, rows = rows_of(own)
        lines += ["", f"{task}: {_heading(plan, task, own)}", *aligned([names, *rows], 2, "  ")]
        lines += [f"  note: {line}" for line in notes_of(own)]
        lines += [
            f"  FAILED {entry.cell.model}, {entry.cell.variant}: {entry.cause}"
            for entry in own
            if entry.state == FAILED
        ]
    return "\n".join(lines) + "\n"


def as_html(plan: Plan, entries: Sequence[Entry]) -> str:
    """The table as the body of a page."""
    parts = [
        f"<h1>Evaluation {page.esc(plan.name)}</h1>\n",
        f"<p>{page.esc(_counted(entries))}; scores times 100.{page.esc(_of_the_paper(entries))}</p>\n",
    ]
    for task, own in _by_task(entries).items():
        names, rows = rows_of(own)
        shown: str = page.table(task, names, rows, numeric=range(2, len(names)))
        shown += "".join(page.note(line) for line in notes_of(own))
        shown += "".join(
            page.note(f"{e.cell.model}, {e.cell.variant}: {e.cause}", warn=True) for e in own if e.state == FAILED
        )
        parts.append(page.section(f"task-{len(parts)}", task, f"<p>{page.esc(_heading(plan, task, own))}</p>\n{shown}"))
    return "".join(parts)


def rows_of(own: Sequence[Entry]) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of one task: model, variant, examples, then each score with the paper's behind it where that has one.

    Below the row of a cell stand those of the parts of its set, of a ranking's other order (ITM), and of drawing lots.
    """
    names = score_names(own)
    with_paper = {name for name in names if any(name in entry.paper for entry in own)}
    heads = [column for name in names for column in (label(name), *([PAPER] if name in with_paper else []))]
    rows = []
    for entry in own:
        for place, (variant, count, scores) in enumerate(_lines(entry)):
            row = ["" if place else entry.cell.model, variant, count]
            for name in names:
                row.append(_shown(name, scores.get(name)))
                if name in with_paper:
                    row.append("" if place else _shown(name, entry.paper.get(name)))
            rows.append(row)
    return ["model", "variant", "examples", *heads], rows


def _lines(entry: Entry) -> list[tuple[str, str, Mapping[str, float]]]:
    """(variant, examples, scores times 100) of each row of a cell, its own first."""
    variant, found = entry.cell.variant, entry.found
    if not found:
        return [(variant, entry.state, {})]
    count = f"{found['num_examples']:,}"
    lines: list[tuple[str, str, Mapping[str, float]]] = []
    if "chance" in found:  # scores are WHO_NAME there
        orders = dict.fromkeys(name.partition("_")[0] for name in entry.scores)
        for who in orders:
            values = {name.partition("_")[2]: v for name, v in entry.scores.items() if name.startswith(f"{who}_")}
            lines.append(
                (f"  by {who.upper()}" if lines else f"{variant}, by {who.upper()}", "" if lines else count, values)
            )
        lines.append(("  chance", "", _percent(found["chance"])))
        return lines
    lines.append((variant, count, entry.scores))
    for part, own in (found.get("parts") or {}).items():
        lines.append((f"  {part}", f"{own['num_examples']:,}", _percent(own["scores"])))
    return lines


def _percent(scores: Mapping[str, float | None]) -> dict[str, float]:
    return {name: 100 * value for name, value in scores.items() if value is not None}


def score_names(own: Sequence[Entry]) -> list[str]:
    """Scores that a table shows: of captions those for people, in the order of the metrics; of other tasks all."""
    found = dict.fromkeys(name for entry in own for name in (*_lines(entry)[0][2], *entry.paper))
    listed = [m.name for m in METRICS.values() if m.name in found and m.shown_in & {TABLE, REPORT, CARD}]
    return [*listed, *(name for name in found if name not in METRICS)]


def label(name: str) -> str:
    """A score's name for people."""
    return METRICS[name].label if name in METRICS else name.replace("_", " ")


def notes_of(own: Sequence[Entry]) -> list[str]:
    """What the numbers of one task depend on, and which rows do not compare."""
    scored, lines = [entry for entry in own if entry.found], []
    for entry in scored:
        name = f"{entry.cell.model}, {entry.cell.variant}"
        left_out = {reason: n for reason, n in (entry.found.get("left_out") or {}).items() if n}
        if left_out:
            lines.append(f"{name}: without {', '.join(f'{n:,} {reason}' for reason, n in left_out.items())}")
        elif entry.found["set_sha256"] != scored[0].found["set_sha256"]:
            lines.append(f"{name}: examples or references are not those of the first row; do not compare them")
        if entry.found.get("tokeniser") == "simple":
            lines.append(f"{name}: tokenised without Java; not comparable with published scores")
        lines += [
            f"{name}: {metric} skipped: {reason}" for metric, reason in (entry.found.get("skipped") or {}).items()
        ]
    decodings = {_flat(entry.found["decoding"]) for entry in scored if entry.found.get("decoding")}
    return list(dict.fromkeys([*lines, *(f"decoding: {one}" for one in sorted(decodings) if one)]))


def paper_scores(plan: Plan, cell: Cell) -> dict[str, float]:
    """The paper's scores (times 100) that belong beside a cell; empty where it has none."""
    dataset, model = plan.tasks[cell.task].paper, plan.models[cell.model].paper
    if not dataset or not model or cell.variant not in ROWS:
        return {}
    found = table1_scores(ROWS[cell.variant], dataset, model)
    return {PAPER_VQA if name == "accuracy" else name: value for name, value in found.items()}


def _entry(results: Results, cell: Cell) -> Entry:
    record, paper = results.record(cell), paper_scores(results.plan, cell)
    if results.is_scored(cell):
        return Entry(cell, SCORED, "", read(results.metrics(cell)), paper)
    return Entry(cell, FAILED if record.cause else MISSING, record.cause, {}, paper)


def _by_task(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    return {
        task: [entry for entry in entries if entry.cell.task == task]
        for task in dict.fromkeys(e.cell.task for e in entries)
    }


def _heading(plan: Plan, task: str, own: Sequence[Entry]) -> str:
    """What the cells of one task were asked."""
    asked = plan.tasks[task]
    found = next((entry.found for entry in own if entry.found), None)
    parts = [f"{TASKS[asked.task].makes} of {asked.modality.replace('_', ' ')}"]
    if found is not None:
        parts += [f"{found['dataset']} {found['split']}", f"{found['num_references']:,} references"]
    if asked.limit:
        parts.append(f"the first {asked.limit:,} {'sources' if TASKS[asked.task].of_questions else 'examples'}")
    policy = found.get("reference_policy") if found is not None else None
    return ", ".join(parts) + (f"; {policy}" if policy else "")


def _counted(entries: Sequence[Entry]) -> str:
    states = [entry.state for entry in entries]
    return f"{len(states)} cells: " + ", ".join(
        f"{states.count(state)} {state}" for state in (SCORED, FAILED, MISSING) if state in states
    )


def _of_the_paper(entries: Sequence[Entry]) -> str:
    return (
        f" Columns named '{PAPER}': {read_paper()['source']}, Table 1, of its data and full-size models."
        if any(e.paper for e in entries)
        else ""
    )


def _flat(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value not in (None, ""))


def _shown(name: str, value: float | None) -> str:
    """One decimal, as the paper prints captions' scores; of VQA accuracies two."""
    return ABSENT if value is None else f"{value:.{2 if name.startswith(ACCURACY) else 1}f}"
