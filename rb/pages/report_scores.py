"""The report's scores: Table 1 of the paper, and every caption metric of every scored set, as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rb.core.metrics import REPORT, shown_in
from rb.core.modality import MODALITIES
from rb.drawing.page import Html, esc, fold, heading, note, row_heading, table_frame
from rb.evaluation.table import ABSENT, ROW_NAMES, Table, build_table, column_key, read_metrics, row_key, truth_rows
from rb.evaluation.verdicts import VERDICTS


def scores_section(run_dir: Path) -> Html:
    """Both tables; a note where there is nothing to show or a file is broken."""
    try:
        metrics = read_metrics(run_dir)
    except (ValueError, OSError) as error:
        return note(error)
    try:
        first = _paper_table(build_table(metrics))
    except ValueError as error:
        first = note(error, warn=True)
    reasons = {f"{name}: {why}" for one in metrics for name, why in (one.get("skipped") or {}).items()}
    skipped = "".join(note(f"skipped {reason}", warn=True) for reason in sorted(reasons))
    return Html(f"{first}{skipped}<h3>All metrics, times 100</h3>{_full_table(metrics)}{_truth_table(metrics)}")


def _paper_table(found: Table) -> Html:
    # Of each set the metrics that some row has; the first where none has any.
    kept = [
        [k for k in range(len(found.metrics)) if any(cells[column][k] != ABSENT for _, cells in found.rows)] or [0]
        for column in range(len(found.columns))
    ]
    over = "".join(
        heading(Html(f'{esc(name)}<br><span class="soft">{esc(data)}</span>'), span=len(metrics), kind="over")
        for (name, data), metrics in zip(found.columns, kept, strict=True)
    )
    under = "".join(heading(found.metrics[k].label, numeric=True) for metrics in kept for k in metrics)
    best = [
        {k: found.metrics[k].best_of(cells[column][k] for _, cells in found.rows) for k in metrics}
        for column, metrics in enumerate(kept)
    ]
    rows = ""
    for name, cells in found.rows:
        shown = "".join(_number(texts[k], best[column][k]) for column, texts in enumerate(cells) for k in kept[column])
        rows += f"<tr>{row_heading(name)}{shown}</tr>"
    notes = fold("what these numbers depend on", "".join(f'<p class="soft">{esc(line)}</p>' for line in found.notes))
    head = f"<tr><td></td>{over}</tr><tr><td></td>{under}</tr>"
    return Html(table_frame("The paper's Table 1 with this run's scores, times 100", head, rows) + notes)


def _number(text: str, best: str | None, why: str = "") -> str:
    title = f' title="{esc(why)}"' if why else ""
    return f'<td class="n{" best" if text == best else ""}"{title}>{esc(text)}</td>'


def _full_table(metrics: Sequence[Mapping[str, Any]]) -> Html:
    """Scores of one set stand together under what they depend on; those of unequal sets never share a block.

    As in Table 1, a control that left examples out stands in the block of the whole set, below the model, and says how many it has.
    """
    blocks: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for one in metrics:
        key = (list(MODALITIES).index(one["modality"]), *column_key(one, metrics))
        blocks.setdefault(key, []).append(one)
    shown = [m for m in shown_in(REPORT) if any(one["scores"].get(m.name) is not None for one in metrics)]
    rows = ""
    for key in sorted(blocks):
        block = sorted(blocks[key], key=row_key)
        whole = max(block, key=lambda one: int(one["num_examples"]))
        same = len({_decoding(one.get("decoding")) for one in block}) == 1
        rows += f'<tr class="set">{row_heading(_set_line(whole, same), span=len(shown) + 1)}</tr>'
        texts = {m.name: [_percent(one["scores"].get(m.name)) for one in block] for m in shown}
        best = {m.name: m.best_of(texts[m.name]) for m in shown}
        for i, one in enumerate(block):
            skipped = one.get("skipped") or {}
            fewer = "" if one["num_examples"] == whole["num_examples"] else f"{one['num_examples']:,} captions"
            remarks = "; ".join(filter(None, [fewer, "" if same else _decoding(one.get("decoding"))]))
            rows += f"<tr>{row_heading(_name(one, remarks))}"
            rows += "".join(_number(texts[name][i], best[name], skipped.get(name, "")) for name in texts) + "</tr>"
    head = "".join(heading(metric.label, numeric=True) for metric in shown)
    return table_frame("All metrics, times 100", f"<tr><td></td>{head}</tr>", rows)


def _truth_table(metrics: Sequence[Mapping[str, Any]]) -> Html:
    """What was true of the captions, where they were judged."""
    rows = truth_rows(metrics)
    if not rows:
        return Html("")
    told = {name.replace("_", " "): meaning for name, meaning in VERDICTS.items()}
    head = "".join(heading(name, numeric=True, about=told.get(name, "")) for name in rows[0][2:])
    body = ""
    for where, name, *texts in rows[1:]:
        body += f"<tr>{row_heading(where)}{row_heading(name)}"
        body += "".join(f'<td class="n">{esc(text.replace("+-", "±"))}</td>' for text in texts) + "</tr>"
    meant = "".join(f'<p class="soft">{esc(name)}: {esc(told[name])}.</p>' for name in rows[0] if name in told)
    title = "What is true of the captions, times 100, ± the standard error over sources"
    framed = table_frame(title, f"<tr><td></td><td></td>{head}</tr>", body)
    return Html(f"<h3>{title}</h3>{framed}{fold('what the headings mean', meant)}")


def _set_line(one: Mapping[str, Any], decoding: bool) -> Html:
    """The set, what its scores depend on, and where all of them have the same the decoding."""
    parts = [f"{one['num_examples']:,} captions", f"{one.get('num_references', '?')} references"]
    parts.append(f"reference policy: {one.get('reference_policy') or 'unknown'}")
    parts.append(f"set {str(one['set_sha256'])[:12]}")
    if one["tokeniser"] != "ptb":
        parts.append("tokenised without Java, not comparable with published scores")
    parts += [_decoding(one.get("decoding"))] if decoding else []
    name = f"{one['modality'].replace('_', ' ')} · {one['dataset']} {one['split']}"
    return Html(f"<span><b>{esc(name)}</b> &nbsp; {esc('; '.join(parts))}</span>")


def _name(one: Mapping[str, Any], remarks: str) -> Html:
    checkpoint = one.get("checkpoint") or {}
    name = ROW_NAMES.get((one["variant"], bool(checkpoint)), one["variant"])
    step = checkpoint.get("step")
    told = "; ".join(filter(None, [f"step {step:,}" if isinstance(step, int) else "", remarks]))
    return Html(f'<span title="{esc(one.get("file", ""))}">{esc(name)}</span> <span class="soft">{esc(told)}</span>')


def _percent(value: object) -> str:
    return f"{100 * value:.1f}" if isinstance(value, (int, float)) else "-"


def _decoding(value: object) -> str:
    """The settings that matter most, in words; all of them stand in the metrics file."""
    if not isinstance(value, dict):
        return str(value or "unknown")
    shown = [f"beam {value['num_beams']}"] if "num_beams" in value else []
    if "max_new_tokens" in value:
        shown.append(f"{value.get('min_new_tokens', 1)}-{value['max_new_tokens']} tokens")
    if value.get("image_size"):
        shown.append(f"{value['image_size']} px")
    if value.get("length_penalty", 1.0) != 1.0:
        shown.append(f"length penalty {value['length_penalty']}")
    return ", ".join(shown) or ", ".join(f"{k} {v}" for k, v in value.items())
