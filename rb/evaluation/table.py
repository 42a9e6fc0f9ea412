"""The paper's Table 1 from ``metrics.json`` files: rows *base*, *base on crops*, *RegionBLIP*; per set its scores, times 100.

Below it, where captions were judged, what was true of them. Used by ``rb table`` and the report page. A column is one set,
told apart by its digest: scores of unequal sets never share a column, but for a control that says which examples of the set it had to
leave out, which gets a note. What else the scores depend on stands in the notes below the table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rb.core.metrics import TABLE, Metric, cider_remark, listed, shown_in
from rb.core.modality import MODALITIES
from rb.core.output import aligned
from rb.core.run_layout import RUN_METRICS
from rb.core.strict_json import FormatError, read
from rb.evaluation.coco_results import OTHER
from rb.evaluation.verdicts import VERDICTS

# (variant, has trained parameters) -> row, in the order of the rows
ROW_NAMES = {
    ("base", False): "base",
    ("crops", False): "base on crops",
    ("checkpoint", False): "RegionBLIP",  # predictions without a meta file
    ("checkpoint", True): "RegionBLIP",
    ("crops", True): "RegionBLIP on crops",
    ("shuffled", False): "base, boxes shuffled",
    ("shuffled", True): "RegionBLIP, boxes shuffled",
    ("blind", False): "base, sees nothing",
    ("blind", True): "RegionBLIP, sees nothing",
    (OTHER, False): "another model",
}
ABSENT = "-"
_NEEDED = ("modality", "dataset", "split", "variant", "scores", "num_examples", "set_sha256", "tokeniser")

ColumnKey = tuple[str, str, str, str, str]  # modality, dataset, split, tokeniser, digest of the set
RowKey = tuple[int, str]  # place in ROW_NAMES; of a trained model, run and name of its checkpoint; of another, its file


@dataclass(frozen=True)
class Table:
    """Table 1 as texts, ready to print or to put into a page.

    Attributes:
        columns: per set its heading: modality, and dataset with split.
        metrics: what each column holds.
        rows: name, then per column a text for each of ``metrics`` (times 100, one decimal, ``-`` where absent).
        notes: what the numbers depend on, one line each.
    """

    columns: list[tuple[str, str]]
    metrics: list[Metric]
    rows: list[tuple[str, list[tuple[str, ...]]]]
    notes: list[str]


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All ``RUN_DIR/metrics/*.json`` of captions; a ``FormatError`` names a file that is none of ours."""
    folder = Path(run_dir) / RUN_METRICS
    found = []
    for path in sorted(folder.glob("*.json")):
        metrics = read(path)
        if (
            isinstance(metrics, dict) and "task" in metrics
        ):  # of another task than captions (rb/evaluation/task_scores.py)
            continue
        lacking = [name for name in _NEEDED if not isinstance(metrics, dict) or name not in metrics]
        if lacking:
            raise FormatError(f"{path}: no metrics file (it has no {lacking[0]!r}); score the predictions again")
        found.append({**metrics, "file": str(path)})
    if not found:
        raise ValueError(f"{folder}: no metrics there; `rb score {run_dir}/predictions/*.jsonl` writes them")
    return found


def set_key(one: Mapping[str, Any]) -> ColumnKey:
    """Which set was scored, and by which tokeniser: only where these are equal do scores compare."""
    return one["modality"], one["dataset"], one["split"], one["tokeniser"], one["set_sha256"]


def build_table(metrics: Sequence[Mapping[str, Any]]) -> Table:
    """The table of ``metrics.json`` contents. ``ValueError`` where two files claim the same cell."""
    cells: dict[tuple[RowKey, ColumnKey], Mapping[str, Any]] = {}
    for one in metrics:
        key = (row_key(one), column_key(one, metrics))
        if key in cells:
            files = " and ".join(str(m.get("file", "one")) for m in (cells[key], one))
            raise ValueError(
                f"{files} score the same captions' set with the same model; keep one of them in the folder"
            )
        cells[key] = one
    rows = sorted({row for row, _ in cells})
    shown = shown_in(TABLE)
    columns = sorted({column for _, column in cells}, key=lambda c: (list(MODALITIES).index(c[0]), c))
    return Table(
        columns=[(column[0].replace("_", " "), f"{column[1]} {column[2]}") for column in columns],
        metrics=shown,
        rows=[(_row_name(row, rows), [_texts(cells.get((row, column)), shown) for column in columns]) for row in rows],
        notes=[
            f"{listed([metric.label for metric in shown])} times 100.",
            *(
                line
                for column in columns
                for line in _notes([(r, cells[r, column]) for r in rows if (r, column) in cells], rows)
            ),
        ],
    )


def format_table(metrics: Sequence[Mapping[str, Any]]) -> str:
    """The table of ``metrics.json`` contents as plain text with its notes."""
    table = build_table(metrics)
    labels = [metric.label for metric in table.metrics]
    widths = [max(len(heading) for heading in (*column, "  ".join(labels))) for column in table.columns]
    first = max(len(name) for name in ("", *(name for name, _ in table.rows)))
    lines = [
        " | ".join(
            [" " * first, *(column[i].center(width) for column, width in zip(table.columns, widths, strict=True))]
        )
        for i in (0, 1)
    ]
    lines.append(" | ".join([" " * first, *(_cells(labels, labels, width) for width in widths)]))
    lines.append("-+-".join(["-" * first, *("-" * width for width in widths)]))
    for name, cells in table.rows:
        lines.append(
            " | ".join([name.ljust(first), *(_cells(c, labels, w) for c, w in zip(cells, widths, strict=True))])
        )
    return "\n".join(line.rstrip() for line in [*lines, "", *table.notes]) + "\n"


def truth_rows(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """What was true, by a judge: a row of headings, then one for each scored set and model; empty where nothing was judged.

    Shares are times 100, with the standard error of a bootstrap over sources. Sets are never mixed: each has its own rows.
    """
    judged = [one for one in metrics if one.get("truth")]
    judged.sort(key=lambda one: (list(MODALITIES).index(one["modality"]), column_key(one, metrics), row_key(one)))
    names = [name for name in VERDICTS if any(name in one["truth"] for one in judged)]
    rows = [row_key(one) for one in judged]
    lines = [("", "", "captions", *(name.replace("_", " ") for name in names))] if judged else []
    for one in judged:
        where = f"{one['modality'].replace('_', ' ')} ({one['dataset']} {one['split']})"
        shown = [_share(one["truth"].get(name)) for name in names]
        lines.append((where, _row_name(row_key(one), sorted(set(rows))), f"{one['num_examples']:,}", *shown))
    return lines


def format_truth(metrics: Sequence[Mapping[str, Any]]) -> str:
    """``truth_rows`` as plain text with what each heading means; empty where nothing was judged."""
    rows = truth_rows(metrics)
    if not rows:
        return ""
    lines = aligned(rows, 2)
    told = [f"{name.replace('_', ' ')}: {VERDICTS[name]}." for name in VERDICTS if name.replace("_", " ") in rows[0]]
    head = "What is true of the captions, times 100, +- the standard error over sources."
    return "\n".join([head, "", *lines, "", *told]) + "\n"


def _share(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return ABSENT
    error = f" +-{100 * entry['error']:4.1f}" if entry["error"] is not None else ""
    return f"{100 * entry['share']:.1f}{error}"


def _cells(texts: Sequence[str], labels: Sequence[str], width: int) -> str:
    """A text under each label, to the right; the column's spare width is shared out among them."""
    natural = [len(label) + (2 if k else 0) for k, label in enumerate(labels)]
    spare, last = width - sum(natural), len(labels) - 1
    share = spare // len(labels)
    padded = [n + (spare - share * last if k == last else share) for k, n in enumerate(natural)]
    return "".join(text.rjust(w) for text, w in zip(texts, padded, strict=True))


def row_key(one: Mapping[str, Any]) -> RowKey:
    """The row of a score file: its place in ``ROW_NAMES``, and which trained model it is of."""
    checkpoint = one.get("checkpoint") or {}
    kind = (one["variant"], bool(checkpoint))
    if kind not in ROW_NAMES:
        raise FormatError(
            f"{one.get('file')}: variant {kind[0]!r} {'with' if kind[1] else 'without'} a checkpoint is no row"
        )
    if one["variant"] == OTHER:
        return list(ROW_NAMES).index(kind), str(one.get("predictions", ""))
    return list(ROW_NAMES).index(kind), f"{checkpoint.get('run')}/{checkpoint.get('name')}" if checkpoint else ""


def column_key(one: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> ColumnKey:
    """The set of ``one``; if it left examples out, the only scored set of the same data that has just as many more."""
    own, missing = set_key(one), _num_left_out(one)
    if not missing:
        return own
    size = one["num_examples"] + missing
    whole = {set_key(m) for m in metrics if m["num_examples"] == size and not _num_left_out(m)}
    alike = [key for key in whole if key[:-1] == own[:-1]]
    return alike[0] if len(alike) == 1 else own


def _num_left_out(one: Mapping[str, Any]) -> int:
    return sum((one.get("left_out") or {}).values())


def _row_name(row: RowKey, rows: Sequence[RowKey]) -> str:
    """The row's name, with run and checkpoint where several trained models are in the table."""
    name = list(ROW_NAMES.values())[row[0]]
    return f"{name} {'/'.join(Path(row[1]).parts[-2:])}" if sum(other[0] == row[0] for other in rows) > 1 else name


def _texts(one: Mapping[str, Any] | None, shown: Sequence[Metric]) -> tuple[str, ...]:
    values = [None if one is None else one["scores"].get(metric.name) for metric in shown]
    return tuple(ABSENT if value is None else f"{100 * value:.1f}" for value in values)


def _notes(scored: Sequence[tuple[RowKey, Mapping[str, Any]]], rows: Sequence[RowKey]) -> list[str]:
    """What the numbers of one column depend on, and what differs between its rows."""
    one = min((m for _, m in scored), key=_num_left_out)
    name = f"{one['modality'].replace('_', ' ')} ({one['dataset']} {one['split']})"
    facts = [f"{one['num_examples']:,} captions, {one.get('num_references', '?')} references"]
    if one.get("reference_policy"):
        facts.append(f"reference policy: {one['reference_policy']}")
    attainable = one.get("attainable") or {}
    if "CIDEr" in attainable:
        facts.append(cider_remark(attainable) or f"CIDEr of a perfect captioner {100 * attainable['CIDEr']:.1f}")
    if one["tokeniser"] != "ptb":
        facts.append("tokenised without Java: not comparable with published scores")
    decodings = {_row_name(row, rows): _flat(m.get("decoding")) for row, m in scored if m.get("decoding")}
    if len(set(decodings.values())) == 1:
        facts.append(f"decoding {next(iter(decodings.values()))}")
    lines = [f"{name}: {'; '.join(facts)}."]
    if len(set(decodings.values())) > 1:
        lines += [f"{name}, {row}: decoding {decoding}." for row, decoding in decodings.items()]
    for row, m in scored:
        if m is not one and _num_left_out(m):
            lines.append(
                f"{name}, {_row_name(row, rows)}: {m['num_examples']:,} captions; left out: {_flat(m['left_out'])}."
            )
    skipped = {f"{metric} skipped: {reason}" for _, m in scored for metric, reason in (m.get("skipped") or {}).items()}
    return lines + [
        f"{name}: {line}"
        for line in sorted(skipped)
        if line.startswith(tuple(metric.name for metric in shown_in(TABLE)))
    ]


def _flat(value: Any) -> str:
    if not isinstance(value, dict):
        return json.dumps(value)
    return ", ".join(f"{name} {v}" for name, v in value.items() if v not in (None, ""))  # what is not set says nothing
