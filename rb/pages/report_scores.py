"""The report's scores: Table 1 of the paper, and every caption metric of every scored set, as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rb.core.metrics import HIGHER, REPORT, Metric, shown_in
from rb.core.modality import MODALITIES
from rb.drawing.page import Html, esc, fold, note
from rb.evaluation.table import ROW_NAMES, Table, build_table, read_metrics, set_key, truth_rows
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
    over = "".join(
        f'<th class="over" colspan="{len(found.metrics)}">{esc(name)}<br><span class="soft">{esc(data)}</span></th>'
        for name, data in found.columns
    )
    under = "".join(f'<th class="n">{esc(metric.label)}</th>' for _ in found.columns for metric in found.metrics)
    best = [
        [_best(metric, [cells[column][k] for _, cells in found.rows]) for k, metric in enumerate(found.metrics)]
        for column in range(len(found.columns))
    ]
    rows = ""
    for name, cells in found.rows:
        rows += f"<tr><td>{esc(name)}</td>"
        for column, texts in enumerate(cells):
            for k, text in enumerate(texts):
                rows += f'<td class="n{" best" if text == best[column][k] else ""}">{esc(text)}</td>'
        rows += "</tr>"
    notes = fold("what these numbers depend on", "".join(f'<p class="soft">{esc(line)}</p>' for line in found.notes))
    return Html(
        f'<div class="scroll"><table><thead><tr><th></th>{over}</tr><tr><th></th>{under}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{notes}"
    )


def _best(metric: Metric, texts: Sequence[str]) -> str | None:
    """The best number among several; none if there are not two to compare, or the metric has no better and worse."""
    numbers = [text for text in texts if text.replace(".", "", 1).isdigit()]
    if metric.better is None or len(numbers) < 2:
        return None
    return max(numbers, key=float) if metric.better == HIGHER else min(numbers, key=float)


def _full_table(metrics: Sequence[Mapping[str, Any]]) -> Html:
    """Scores of one set stand together under what they depend on; those of unequal sets never share a block."""
    blocks: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for one in metrics:
        key = (list(MODALITIES).index(one["modality"]), *set_key(one))
        blocks.setdefault(key, []).append(one)
    rows, shown = "", shown_in(REPORT)
    for key in sorted(blocks):
        block = blocks[key]
        rows += f'<tr class="set"><td colspan="{len(shown) + 2}">{_set_line(block[0])}</td></tr>'
        texts = {m.name: [_percent(one["scores"].get(m.name)) for one in block] for m in shown}
        best = {m.name: _best(m, texts[m.name]) for m in shown}
        for i, one in enumerate(block):
            rows += f"<tr><td>{_name(one)}</td>"
            for name in texts:
                skipped = (one.get("skipped") or {}).get(name)
                why = f' title="{esc(skipped)}"' if skipped else ""
                rows += f'<td class="n{" best" if texts[name][i] == best[name] else ""}"{why}>{texts[name][i]}</td>'
            rows += f'<td class="soft">{esc(_decoding(one.get("decoding")))}</td></tr>'
    head = "".join(f'<th class="n">{esc(metric.label)}</th>' for metric in shown)
    return Html(
        f'<div class="scroll"><table><thead><tr><th></th>{head}<th>decoding</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _truth_table(metrics: Sequence[Mapping[str, Any]]) -> Html:
    """What was true of the captions, where they were judged."""
    rows = truth_rows(metrics)
    if not rows:
        return Html("")
    told = {name.replace("_", " "): meaning for name, meaning in VERDICTS.items()}
    head = "".join(f'<th class="n" title="{esc(told.get(name, ""))}">{esc(name)}</th>' for name in rows[0][2:])
    body = ""
    for where, name, *texts in rows[1:]:
        body += f"<tr><td>{esc(where)}</td><td>{esc(name)}</td>"
        body += "".join(f'<td class="n">{esc(text.replace("+-", "±"))}</td>' for text in texts) + "</tr>"
    meant = "".join(f'<p class="soft">{esc(name)}: {esc(told[name])}.</p>' for name in rows[0] if name in told)
    return Html(
        f"<h3>What is true of the captions, times 100, ± the standard error over sources</h3>"
        f'<div class="scroll"><table><thead><tr><th></th><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f"{fold('what the headings mean', meant)}"
    )


def _set_line(one: Mapping[str, Any]) -> str:
    parts = [f"{one['num_examples']:,} captions", f"{one.get('num_references', '?')} references"]
    parts.append(f"reference policy: {one.get('reference_policy') or 'unknown'}")
    parts.append(f"set {str(one['set_sha256'])[:12]}")
    if one["tokeniser"] != "ptb":
        parts.append("tokenised without Java, not comparable with published scores")
    name = f"{one['modality'].replace('_', ' ')} · {one['dataset']} {one['split']}"
    return f"<b>{esc(name)}</b> &nbsp; {esc('; '.join(parts))}"


def _name(one: Mapping[str, Any]) -> str:
    checkpoint = one.get("checkpoint") or {}
    name = ROW_NAMES.get((one["variant"], bool(checkpoint)), one["variant"])
    step = checkpoint.get("step")
    where = f' <span class="soft">step {step:,}</span>' if isinstance(step, int) else ""
    return f'<span title="{esc(one.get("file", ""))}">{esc(name)}</span>{where}'


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
