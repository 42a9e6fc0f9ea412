"""A comparison (rb/evaluation/comparing.py) as plain text. Used by ``rb compare``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rb.core.metrics import COMPARISON, shown_in


def format_comparison(name: str, found: Mapping[str, Any]) -> str:
    """One compared set: table, allowed differences, how the files were made, the examples furthest apart."""
    files = found["files"]
    width = max(len(one["path"]) for one in files)
    lines = [f"{name}: {of_sources(found)}, tokeniser {found['tokeniser']}; times 100 [95 %, drawing whole sources]"]
    for one in files:
        head = f"  {one['path'].ljust(width)}  {one['variant']:<10}"
        for metric in shown_in(COMPARISON):
            score = one["scores"][metric.name]
            if score is None:
                continue
            line = f"{head}  {metric.label} {score_text(score['value'], score['interval'])}"
            if "difference" in score:
                line += f"  against the first {score_text(score['difference'], score['difference_interval'], sign='+')}"
            lines.append(line)
            head = " " * len(head)  # file and variant stand before its first score only
    lines += [f"  note: {found['remark']}"] if found["remark"] else []
    lines += [f"  ALLOWED DIFFERENCE, {d['difference']}: {d['file']}: {d['what']}" for d in found["allowed"]]
    for one in files[1:]:
        lines += ["", f"{one['path']} against {files[0]['path']}"]
        lines += [f"  {key}: {before} -> {after}" for key, (before, after) in one["changes"].items()]
        for example in one["apart"]:
            scores = " -> ".join(f"{100 * value:.1f}" for value in example["CIDEr"])
            lines.append(f"  {example['id']}: CIDEr {scores}")
            lines.append(f"    {example['predictions'][0]!r} -> {example['predictions'][1]!r}")
            lines.append(f"    references: {' | '.join(example['references'])}")
    return "\n".join(lines) + "\n"


def of_sources(found: Mapping[str, Any]) -> str:
    """``359 examples of 200 sources``: how much an interval rests on."""
    number = found["num_sources"]
    return f"{found['num_examples']:,} examples of {number:,} source{'' if number == 1 else 's'}"


def score_text(value: float, interval: list[float] | None, sign: str = "") -> str:
    """A score and its interval if it has one, times 100."""
    shown = f"{100 * value:{sign}.1f}"
    if interval is None:
        return shown
    low, high = (f"{100 * v:{sign}.1f}" for v in interval)
    return f"{shown} [{low}, {high}]"
