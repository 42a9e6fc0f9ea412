"""A comparison (rb/evaluation/comparing.py) as one self-contained page: scores with intervals, what differs, the examples furthest apart.

Used by ``rb compare --html FILE``. Pictures come from the manifests that the files' metas name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rb.core.metrics import COMPARISON, shown_in
from rb.core.run_layout import RUN_PREDICTIONS
from rb.drawing.cards import card, group, prediction
from rb.drawing.intervals import interval_chart
from rb.drawing.page import (
    Html,
    esc,
    facts,
    fold,
    heading,
    navigation,
    note,
    path_text,
    row_heading,
    section,
    table,
    table_frame,
    write_page,
)
from rb.evaluation.comparing import read_side
from rb.evaluation.comparison_text import of_sources
from rb.evaluation.paper import printed, read_paper, table1_rows
from rb.pages.pictures import LEFT_OUT, PICTURE_BUDGET, load_examples, picture

_ABSENT = Html('<span class="soft">-</span>')


def write_comparison(path: Path, found: Mapping[str, Mapping[str, Any]], paper: bool) -> Path:
    """Write the page of all compared sets and return its path.

    Args:
        path: the file; its folder is made where missing.
        found: per set its name and what ``compare`` returned.
        paper: the paper's Table 1 values as columns beside the scores, marked as the paper's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    names = file_names([[one["path"] for one in result["files"]] for result in found.values()])
    parts, budget = [], PICTURE_BUDGET
    for number, (name, result) in enumerate(found.items()):
        one = _set(names[number], result, paper, budget // (len(found) - number))
        budget -= len(one)
        modality = result["files"][0]["modality"].replace("_", " ")
        parts.append((f"set-{number}", name if len(found) > 1 else modality, one))
    first, *others = dict.fromkeys(name for group in names for name in group)
    title = f"{', '.join(others)} against {first}" if others else first
    head = f'<header><div class="title"><h1>{esc(title)}</h1><span class="pill">comparison</span></div></header>'
    html = head + (navigation((place, name) for place, name, _ in parts) if len(parts) > 1 else "")
    html += "".join(section(*part) for part in parts)
    return write_page(path, f"{title} · RegionBLIP", html)


def file_names(groups: Sequence[Sequence[str]]) -> list[list[str]]:
    """Short names for the columns of each set: of the run where all differ by it, else of the file too, else numbered."""
    named = []
    for paths in groups:
        of_run = [Path(p).resolve().parent.parent.name if Path(p).parent.name == RUN_PREDICTIONS else "" for p in paths]
        stems = [Path(p).stem for p in paths]
        both = [f"{run}/{stem}" if run else stem for run, stem in zip(of_run, stems, strict=True)]
        choices = ([*of_run] if all(of_run) else stems, stems, both)
        names = next((c for c in choices if len(set(c)) == len(c)), [f"{k}: {name}" for k, name in enumerate(both, 1)])
        named.append(names)
    return named


def _set(names: Sequence[str], result: Mapping[str, Any], paper: bool, budget: int) -> Html:
    files = result["files"]
    first = files[0]
    html: str = facts({name: path_text(one["path"]) for name, one in zip(names, files, strict=True)})
    html += f'<p class="soft">{of_sources(result)}, each compared with {esc(names[0])}; 95 % intervals draw whole sources, the same for all files.'
    html += "" if result["tokeniser"] == "ptb" else " Tokenised without Java, not comparable with published scores."
    html += "</p>"
    html += "".join(
        note(f"Allowed difference, {one['difference']}: {one['file']}: {one['what']}", warn=True)
        for one in result["allowed"]
    )
    html += "<h3>Scores, times 100</h3>" + _scores(names, files, paper_columns(first["modality"]) if paper else [])
    if paper:
        html += note(
            f"Marked columns: {read_paper()['source']}, Table 1. The paper's data and full-size models, not this comparison's."
        )
    if first["interval"] is not None:  # one source has none
        rows = [
            (name, 100 * one["CIDEr"], *(100 * v for v in one["interval"]))
            for name, one in zip(names, files, strict=True)
        ]
        html += interval_chart("CIDEr with 95 % intervals", "CIDEr, times 100", rows, 100 * first["CIDEr"])
    html += f"<h3>How they were made: what differs</h3>{_settings(names, files)}"
    for name, one in zip(names[1:], files[1:], strict=True):
        html += _apart((names[0], name), first["path"], one, budget // (len(files) - 1))
    return Html(html)


def paper_columns(modality: str) -> list[tuple[str, str, dict[str, float]]]:
    """The paper's caption scores of one modality as columns: whose (row and data set), model, metric to value."""
    return [
        (f"{row['row']}, {row['dataset']} {row['split']}", model, {name: v[k] for name, v in row["scores"].items()})
        for row in table1_rows(modality)
        if "CIDEr" in row["scores"]  # not VQA accuracies
        for k, model in enumerate(read_paper()["models"])
    ]


def _scores(
    names: Sequence[str],
    files: Sequence[Mapping[str, Any]],
    paper: Sequence[tuple[str, str, Mapping[str, float]]],
) -> Html:
    """A column per file, then the paper's."""
    head = "".join(heading(name, numeric=True) for name in names)
    head += "".join(heading(model, numeric=True, kind="paper") for _, model, _ in paper)
    over = ""
    if paper:
        spans: dict[str, int] = {}
        for whose, _, _ in paper:
            spans[whose] = spans.get(whose, 0) + 1
        theirs = "".join(heading(f"the paper: {whose}", span=n, kind="over paper") for whose, n in spans.items())
        over = f"<tr><td></td>{heading('', span=len(names))}{theirs}</tr>"
    rows = ""
    for metric in shown_in(COMPARISON):
        scores = [one["scores"][metric.name] for one in files]
        if not any(scores) and not any(metric.name in values for _, _, values in paper):
            continue
        values = [_ABSENT if score is None else f"{100 * score['value']:.1f}" for score in scores]
        papers = [printed(v[metric.name]) if metric.name in v else _ABSENT for _, _, v in paper]
        rows += _row(metric.label, values, papers, metric.best_of(values))
        if not any(scores):
            continue
        rows += _row("95 %", [_range(score, "interval") for score in scores], [Html("")] * len(paper))
        apart = [_difference(score) for score in scores[1:]]
        rows += _row(f"against {names[0]}", [Html(""), *apart], [Html("")] * len(paper))
    return table_frame("Scores of the compared files, times 100", f"{over}<tr><td></td>{head}</tr>", rows)


def _row(name: str, values: Sequence[str], papers: Sequence[str], best: str | None = "") -> str:
    """A metric's values with the best one marked, if any is; without ``best`` a row that says more of the one above."""
    cells = "".join(f'<td class="n{" best" if best and value == best else ""}">{esc(value)}</td>' for value in values)
    cells += "".join(f'<td class="n paper">{esc(value)}</td>' for value in papers)
    return f"<tr>{row_heading(name, kind='soft' if best == '' else '')}{cells}</tr>"


def _range(score: Mapping[str, Any] | None, key: str, sign: str = "") -> str:
    if score is None or score.get(key) is None:
        return _ABSENT
    low, high = score[key]
    return f"{100 * low:{sign}.1f} to {100 * high:{sign}.1f}"


def _difference(score: Mapping[str, Any] | None) -> str:
    if score is None or "difference" not in score:
        return _ABSENT
    interval = _range(score, "difference_interval", "+")
    return f"{100 * score['difference']:+.1f}" + (f" ({interval})" if interval != _ABSENT else "")


def _settings(names: Sequence[str], files: Sequence[Mapping[str, Any]]) -> Html:
    """A row per setting in which any file differs from the first, a column per file."""
    keys = sorted({key for one in files[1:] for key in one["changes"]})
    if not keys:
        return note("Nothing: equal configurations and meta files.")
    rows = []
    for key in keys:
        first = next(one["changes"][key][0] for one in files[1:] if key in one["changes"])
        values = [first, *(one["changes"].get(key, (first, first))[1] for one in files[1:])]
        rows.append((_mono(key), *(_mono(value) for value in values)))
    if "config" not in keys:
        return table("Settings that differ", ("", *names), rows)
    # A file whose run is not known has no configuration: then all settings of the others differ, which says little.
    apart = [row for key, row in zip(keys, rows, strict=True) if key.split(".")[0] == "config"]
    rest = [row for key, row in zip(keys, rows, strict=True) if key.split(".")[0] != "config"]
    return Html(
        table("Settings that differ", ("", *names), rest)
        + fold(
            "all settings: the run of some file, and so its configuration, is not known",
            table("All settings", ("", *names), apart),
        )
    )


def _mono(text: str) -> Html:
    return Html(f'<span class="mono">{esc(text)}</span>')


def _apart(names: tuple[str, str], first: str, other: Mapping[str, Any], budget: int) -> Html:
    """Cards of the examples with the largest gain, and with the largest loss, of one file against the first."""
    apart = other["apart"]
    if not apart:
        return note(f"{names[1]}: no example scores differently from {names[0]}.")
    side = read_side(Path(first))
    sources, problem = load_examples(side.path, side.rows, side.meta, [one["id"] for one in apart])
    groups = {
        "gained": [one for one in apart if one["CIDEr"][1] > one["CIDEr"][0]],
        "lost": [one for one in apart if one["CIDEr"][1] < one["CIDEr"][0]],
    }
    shown = [view for view, members in groups.items() if members]
    cards = ""
    for view in shown:
        for place, one in enumerate(groups[view]):
            row = side.rows[one["id"]]
            inside = len(cards) < budget
            seen = picture(row.modality, sources.get(row.id), row.box, row.id) if inside else LEFT_OUT
            texts: str = prediction(names[1], one["predictions"][1], one["CIDEr"][1])
            texts += prediction(names[0], one["predictions"][0], one["CIDEr"][0], faint=True)
            hidden = "" if view == shown[0] else " hidden"
            cards += card(seen, texts, one["references"], one["id"], f'data-{view}="{place}"{hidden}')
    views = [
        (
            view,
            view.capitalize(),
            f"{len(groups[view])} examples in which {names[1]} {view} most CIDEr against {names[0]}.",
        )
        for view in shown
    ]
    title = f"{names[1]} against {names[0]}: the examples furthest apart"
    return group(title, views, cards, problem=problem)
