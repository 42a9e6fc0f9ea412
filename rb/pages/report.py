"""The report of a run: one self-contained HTML page from what its folder holds: journal, scores, predictions, configuration.

Used by ``rb report RUN_DIR``, during a run as after it. The page names what is missing or broken and shows the rest.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rb.core.loss_terms import LOSS_TERMS
from rb.core.metric_names import (
    EPOCH,
    EVAL,
    GRAD_NORM,
    RATE,
    SPEED,
    TOTAL,
    TRAIN,
    VAL,
    MetricName,
    parse_name,
)
from rb.core.modality import MODALITIES
from rb.core.run_layout import (
    RUN_CONFIG,
    RUN_ENVIRONMENT,
    RUN_JOURNAL,
    RUN_METRICS,
    RUN_MLFLOW,
    RUN_PREDICTIONS,
    RUN_REPORT,
    RUN_WEIGHTS,
)
from rb.core.strict_json import read
from rb.drawing.curves import Series, chart
from rb.drawing.page import Html, esc, facts, fold, navigation, note, path_text, section, table, write_page
from rb.pages.gallery import gallery
from rb.pages.report_scores import scores_section
from rb.tracking.bad_steps import BadStep, read_bad_steps
from rb.tracking.closing import close_if_dead
from rb.tracking.journal import Point, metric_points, read_rows

PLAIN = {RATE: "learning rate", GRAD_NORM: "gradient norm", SPEED: "samples per second"}  # of the whole run
HIDDEN = (EPOCH,)
MOST_BAD_STEPS = 100


def build_report(run_dir: str | Path, examples: int = 12) -> Path:
    """Write ``RUN_DIR/report.html`` and return its path. ``examples``: cards per set of predictions.

    Raises:
        ValueError: the folder holds nothing of a run.
    """
    run_dir = Path(run_dir).resolve()
    if not any((run_dir / name).exists() for name in (RUN_JOURNAL, RUN_METRICS, RUN_PREDICTIONS)):
        raise ValueError(f"{run_dir}: no {RUN_JOURNAL}, {RUN_METRICS}/ or {RUN_PREDICTIONS}/ in it; give a run folder")
    problems: list[str] = []
    journal = run_dir / RUN_JOURNAL
    with contextlib.suppress(OSError):  # a folder that may only be read
        close_if_dead(run_dir)
    points = metric_points(journal, on_bad=problems.append)
    events = [row for row, _ in read_rows(journal, on_bad=lambda _: None) if row["kind"] != "metrics"]
    bad = read_bad_steps(journal)
    parts = [
        ("scores", "Scores", scores_section(run_dir)),
        ("curves", "Curves", curves_section(points)),
        *([("bad-steps", "Skipped steps", bad_steps_section(bad))] if bad else []),
        ("gallery", "Gallery", gallery(run_dir, examples)),
        ("made-of", "Made of", _made_of(run_dir, events)),
    ]
    html = _head(run_dir, events, points)
    html += navigation((name, title) for name, title, _ in parts)
    html += "".join(note(problem, warn=True) for problem in problems[:5])
    html += "".join(section(name, title, body) for name, title, body in parts)
    return write_page(run_dir / RUN_REPORT, f"{run_dir.name} · RegionBLIP", html)


def _values(events: Sequence[Mapping[str, Any]], kind: str) -> dict[str, str]:
    merged: dict[str, str] = {}
    for row in events:
        if row["kind"] == kind and isinstance(row.get("values"), dict):
            merged.update(row["values"])
    return merged


def _head(run_dir: Path, events: Sequence[Mapping[str, Any]], points: Mapping[str, Sequence[Point]]) -> str:
    """Name, how it stands, and what identifies it."""
    tags, params = _values(events, "tags"), _values(events, "params")
    statuses = [(row["time"], str(row.get("status"))) for row in events if row["kind"] == "status"]
    status = statuses[-1][1].lower() if statuses else "not tracked"
    tone = {"finished": " good", "failed": " bad", "killed": " bad"}.get(status, "")
    times = [statuses[0][0]] if statuses else []
    times += [point.time for series in points.values() for point in series[-1:]]
    steps = [
        series[-1].step for name, series in points.items() if (parsed := parse_name(name)) and parsed.stage == TRAIN
    ]
    resumes = sum(row["kind"] == "resume" for row in events)
    shown: dict[str, object] = {
        "steps": f"{max(steps):,}" if steps else "none yet",
        "time from first to last event": _duration(max(times) - min(times)) if times else "unknown",
        "resumed": f"{resumes} times" if resumes != 1 else "once",
        "schedule": params.get("train.schedule", "unknown"),
        "global batch size": params.get("train.global_batch_size", "unknown"),
        "ranks": tags.get("ranks", "unknown"),
        "seed": params.get("seed", "unknown"),
        "config digest": _short(tags.get("config_digest", "unknown")),
        "git commit": _short(tags.get("git_commit", "unknown")),
    }
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # not copied to MLflow, or not yet
        shown["MLflow run"] = _short(str(read(run_dir / RUN_MLFLOW)["run_id"]))
    if not resumes:
        del shown["resumed"]
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(times[0])) if times else ""
    return (
        f'<header><div class="title"><h1>{esc(run_dir.name)}</h1><span class="pill{tone}">{esc(status)}</span></div>'
        f'<p class="soft">{esc(when)} · {path_text(run_dir)}</p>{facts(shown)}</header>\n'
    )


def _short(digest: str, most: int = 12) -> Html:
    """A long identity, cut for reading, whole under the mouse."""
    mark = "-dirty" if digest.endswith("-dirty") else ""
    cut = digest if len(digest) <= most + len(mark) else digest[:most] + mark
    return Html(f'<span class="mono" title="{esc(digest)}">{esc(cut)}</span>')


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def curves_section(points: Mapping[str, Sequence[Point]]) -> Html:
    """Scores over the steps, one panel per loss term with a curve per modality and stage, then rate, gradient norm and speed."""
    panels: dict[str, list[Series]] = {}
    scores: dict[str, list[Series]] = {}
    others: dict[str, list[Series]] = {}
    for name in sorted(filter(None, map(parse_name, points)), key=_modality_order):
        line = [(p.step, p.value) for p in points[str(name)]]
        if name.stage == EVAL:
            if len(line) > 1:
                series = scores.setdefault(f"{name.value} of checkpoints", [])
                series.append(Series(name.place, f"c{len(series) % 5}", line))
        elif name.term:
            panels.setdefault(name.term, []).append(_series(name.stage, name.place, line))
        elif name.stage == VAL:
            scores.setdefault(f"{name.value} in validation", []).append(_series(TRAIN, name.place, line))
        elif name.place:
            label = f"{name.value.replace('_', ' ').replace('per s', 'per second')}, by modality"
            others.setdefault(label, []).append(_series(name.stage, name.place, line))
        elif name.value in PLAIN:
            others.setdefault(PLAIN[name.value], []).append(Series("all", "c4", line))
        elif name.value not in HIDDEN and any(value for _, value in line):
            others.setdefault(name.value.replace("_", " "), []).append(Series("all", "c4", line))
    if not panels and not others and not scores:
        return note("The journal holds no metrics yet.")
    order = {term: i for i, term in enumerate((*LOSS_TERMS, TOTAL))}
    losses = [chart(f"loss {t}", "loss", panels[t]) for t in sorted(panels, key=lambda t: (order.get(t, 99), t))]
    rest = [
        chart(name, name.split(",")[0], others[name], smoothing=name != "learning rate", zero=True)
        for name in _plain_first(others)
    ]
    scored = [chart(name, name.split(" ")[0], scores[name], smoothing=False, zero=True) for name in sorted(scores)]
    named = {
        s.name: s for group in (*panels.values(), *others.values(), *scores.values()) for s in group if not s.dashed
    }
    legend = _legend({name: s for name, s in named.items() if s.colour != "c4" and "/" not in name}, panels)
    parts = [("Scores", scored), ("Losses", losses), ("Rate, gradient, speed", rest)]
    return Html(
        legend
        + "".join(f"<h3>{title}</h3><div class='panels'>{''.join(drawn)}</div>" for title, drawn in parts if drawn)
    )


def bad_steps_section(bad: Sequence[BadStep]) -> Html:
    """The newest steps that moved nothing, because a loss or gradient was not finite: which term, on which ranks, how many samples."""
    shown = bad[-MOST_BAD_STEPS:]
    rows = [
        (
            f"{one.step:,}",
            one.modality.replace("_", " "),
            ", ".join(one.counts()),
            ", ".join(str(rank) for rank, losses in enumerate(one.ranks) if losses.bad_terms) or "none",
            f"{sum(len(losses.ids) for losses in one.ranks):,}",
        )
        for one in shown
    ]
    heads = ("step", "modality", "not finite", "ranks with such a loss", "samples")
    left_out = note(f"The newest {len(shown)} of {len(bad):,}.") if len(shown) < len(bad) else ""
    return Html(f"{left_out}{table('Skipped steps', heads, rows, (0, 4))}")


def _modality_order(name: MetricName) -> tuple[int, str]:
    known = name.place in MODALITIES
    return (list(MODALITIES).index(name.place) if known else len(MODALITIES), str(name))


def _series(stage: str, modality: str, line: Sequence[tuple[int, float]]) -> Series:
    place = list(MODALITIES).index(modality) if modality in MODALITIES else len(MODALITIES)
    name = modality.replace("_", " ")
    return Series(f"{name}, validation" if stage == VAL else name, f"c{place % 5}", line, dashed=stage == VAL)


def _plain_first(names: Mapping[str, object]) -> list[str]:
    fixed = list(PLAIN.values())
    return sorted(names, key=lambda n: (fixed.index(n) if n in fixed else len(fixed), n))


def _legend(series: Mapping[str, Series], panels: Mapping[str, Sequence[Series]]) -> str:
    entries = [f'<span class="{s.colour}"><i></i>{esc(name)}</span>' for name, s in series.items()]
    if any(s.dashed for group in panels.values() for s in group):
        entries.append('<span><i class="dash"></i>validation</span>')
    entries.append('<span><i class="faint"></i>logged values; strong lines are smoothed</span>')
    return f'<div class="legend">{"".join(entries)}</div>'


def _made_of(run_dir: Path, events: Sequence[Mapping[str, Any]]) -> Html:
    """Trainable parameters, data sets, foundation, environment, configuration."""
    tags = _values(events, "tags")
    html = ""
    counts = {k.split(".", 1)[1]: v for k, v in tags.items() if k.startswith("trainable_parameters.")}
    if counts:
        rows = [(name.replace("_", " "), f"{int(v):,}" if v.isdigit() else v) for name, v in counts.items()]
        html += "<h3>Trainable parameters, by the modalities that use them</h3>" + table(
            "Trainable parameters", ("used by", "numbers"), rows, (1,)
        )
    inputs = {
        (r.get("context", "training"), r.get("name"), r.get("source")): r.get("digest", "")
        for r in events
        if r["kind"] == "input"
    }
    if inputs:
        rows_in = [
            (why, name, _short(str(digest)), path_text(source)) for (why, name, source), digest in inputs.items()
        ]
        html += "<h3>Data</h3>" + table("Data", ("for", "name", "digest", "manifest"), rows_in)
    parts = {k.split(".", 1)[1]: v for k, v in tags.items() if k.startswith("foundation.")}
    if parts:
        html += "<h3>Foundation (frozen)</h3>" + table(
            "Foundation", ("part", "fingerprint"), [(k, _short(v, 71)) for k, v in parts.items()]
        )
    for name in (RUN_CONFIG, RUN_ENVIRONMENT):
        if (run_dir / name).is_file():
            html += fold(name, f"<pre>{esc((run_dir / name).read_text(encoding='utf-8', errors='replace'))}</pre>")
    if (run_dir / RUN_WEIGHTS).is_file():
        html += fold("where the weights came from (numbers by part and origin)", _weights(run_dir / RUN_WEIGHTS))
    return Html(html) if html else note("The folder says nothing about configuration or data.")


def _weights(path: Path) -> Html:
    try:
        parts = read(path)["parts"]
        rows = [(part, origin, f"{int(n):,}") for part, found in parts.items() for origin, n in found.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return note(f"{path.name} cannot be read ({error!r}).", warn=True)
    return table("Where the weights came from", ("part", "origin", "numbers"), rows, (2,))
