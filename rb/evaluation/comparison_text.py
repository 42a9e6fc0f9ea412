"""A comparison (rb/evaluation/comparing.py) as plain text. Used by ``python -m eval.compare``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def format_comparison(name: str, found: Mapping[str, Any]) -> str:
    """One compared set: table, allowed differences, how the files were made, the examples furthest apart."""
    files = found["files"]
    width = max(len(one["path"]) for one in files)
    lines = [f"{name}: {found['num_examples']:,} examples, tokeniser {found['tokeniser']}; times 100 [95 %]"]
    for k, one in enumerate(files):
        line = f"  {one['path'].ljust(width)}  {one['variant']:<10}  CIDEr {score_text(one['CIDEr'], one['interval'])}"
        if k:
            line += f"  against the first {score_text(one['difference'], one['difference_interval'], sign='+')}"
        lines.append(line)
        spice = one["SPICE"]
        if spice:
            line = f"  {' ' * width}  {'':<10}  SPICE {score_text(spice['value'], spice['interval'])}"
            if "difference" in spice:
                line += f"  against the first {score_text(spice['difference'], spice['difference_interval'], sign='+')}"
            lines.append(line)
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


def score_text(value: float, interval: list[float], sign: str = "") -> str:
    """A score and its interval, times 100."""
    low, high = (f"{100 * v:{sign}.1f}" for v in interval)
    return f"{100 * value:{sign}.1f} [{low}, {high}]"
