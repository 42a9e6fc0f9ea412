"""Compares prediction files of one set: what differs in how they were made, scores with paired intervals, the examples apart.

Used by ``rb compare``. Files that are not comparable are refused with the difference's name; an allowed one is part of the
result. Every file is compared with the first. What needs no Java is computed here; SPICE is taken from where ``rb score`` wrote it. As text:
``rb/evaluation/comparison_text.py``; as a page: ``comparison_page.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rb.core.files import file_sha256
from rb.core.metrics import COMPARISON, Metric, cider_remark, shown_in
from rb.core.run_layout import RUN_CONFIG, RUN_PREDICTIONS
from rb.core.run_yaml import read_yaml_file
from rb.core.strict_json import FormatError, parse_lines, read
from rb.data.formats import Prediction, read_predictions
from rb.evaluation.caption_metrics import CaptionScores, CaptionSet, score_sets
from rb.evaluation.resampling import SourceBootstrap
from rb.evaluation.scoring import examples_path, metrics_path

DIFFERENCES = ("examples", "references", "reference_policy", "decoding")  # what makes scores incomparable
_ABSENT = "(absent)"
_OF_THE_FILE = (
    "num_predictions",
    "ids_sha256",
    "file_sha256",
)  # of the meta file; says nothing of how captions were made


@dataclass(frozen=True)
class Side:
    """One predictions file: its rows by id, its meta file, the configuration of the run that made it ({} where unknown)."""

    path: Path
    rows: dict[str, Prediction]
    meta: dict[str, Any]
    config: dict[str, Any]


def find_groups(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """What is compared with what: the files themselves, or of run folders those that all of them have, by name.

    Raises:
        ValueError: fewer than two, files mixed with folders, a path that is not there, folders without a common file.
    """
    if len(paths) < 2:
        raise ValueError("a comparison needs at least two prediction files or run folders")
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: is not there; give predictions files or run folders")
    folders = [path.is_dir() for path in paths]
    if not any(folders):
        return {paths[0].stem: list(paths)}
    if not all(folders):
        raise ValueError(
            f"{paths[folders.index(False)]}: is a file beside folders; give files only or run folders only"
        )
    names = [{file.name for file in (path / RUN_PREDICTIONS).glob("*.jsonl")} for path in paths]
    common = set.intersection(*names)
    if not common:
        listed = "; ".join(f"{p}: {', '.join(sorted(n)) or 'none'}" for p, n in zip(paths, names, strict=True))
        raise ValueError(f"the run folders have no predictions of one name ({listed}); predict under equal names")
    return {Path(name).stem: [path / RUN_PREDICTIONS / name for path in paths] for name in sorted(common)}


def read_side(path: Path) -> Side:
    """One file with everything known of it; ``FormatError`` where it is damaged or empty."""
    rows, meta = read_predictions(path)
    if not rows:
        raise FormatError(f"{path}: no predictions in it; predict again")
    run = (meta.get("checkpoint") or {}).get("run")
    config = Path(run) / RUN_CONFIG if run else None
    try:
        tree = read_yaml_file(config, typed=True) if config is not None and config.is_file() else {}
    except ValueError as error:
        raise FormatError(f"{config}: {error}; bring the run's own file back") from None
    return Side(Path(path), {row.id: row for row in rows}, meta, tree if isinstance(tree, dict) else {})


def find_differences(first: Side, other: Side) -> dict[str, str]:
    """Name out of ``DIFFERENCES`` to a sentence, for what makes the scores of two files incomparable."""
    found = {}
    lost, added = first.rows.keys() - other.rows.keys(), other.rows.keys() - first.rows.keys()
    if lost or added:
        found["examples"] = (
            f"{len(lost)} of the first file's {len(first.rows)} examples are missing, {len(added)} others are there "
            f"(such as {min(lost or added)!r})"
        )
    common = sorted(first.rows.keys() & other.rows.keys())
    unequal = [i for i in common if sorted(first.rows[i].references) != sorted(other.rows[i].references)]
    if unequal:
        found["references"] = f"{len(unequal)} examples have other references (such as {unequal[0]!r})"
    for name in ("reference_policy", "decoding"):
        changed = changes({"": first.meta.get(name)}, {"": other.meta.get(name)})
        if changed:
            found[name] = ", ".join(f"{key.lstrip('.') or name}: {a} against {b}" for key, (a, b) in changed.items())
    return found


def changes(first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Dotted key to both values as JSON, for all keys of two nested mappings that differ."""
    flat = [_flatten(tree) for tree in (first, other)]
    keys = sorted(flat[0].keys() | flat[1].keys())
    pairs = {key: (flat[0].get(key, _ABSENT), flat[1].get(key, _ABSENT)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def compare(
    paths: Sequence[Path], allow: Sequence[str] = (), use_java: bool = True, examples: int = 5
) -> dict[str, Any]:
    """Compares each file with the first, on the examples that all of them have.

    Args:
        paths: prediction files, two or more.
        allow: names out of ``DIFFERENCES``: differences between the files that are accepted.
        use_java: without it the ``simple`` tokeniser serves.
        examples: how many of the examples that differ most are listed in each direction.

    Returns:
        ``allowed`` (file, difference, what), ``num_examples``, ``num_sources``, ``tokeniser``, ``remark`` (of the set, or null), ``files``: per file ``path``, ``modality``,
        ``variant``, ``scores``: metric to null or ``value``, its 95 % ``interval``, and but for the first file ``difference`` and its paired
        ``difference_interval``; then ``changes`` and ``apart``. CIDEr's and SPICE's entries stand beside ``scores`` too. Intervals draw
        whole sources (rb/evaluation/resampling.py); they are null for one source.

    Raises:
        ValueError: a difference that was not allowed, no common example, an example without references.
    """
    sides = [read_side(path) for path in paths]
    allowed = []
    for side in sides[1:]:
        for name, what in find_differences(sides[0], side).items():
            if name not in allow:
                raise ValueError(
                    f"{side.path}: not comparable with {sides[0].path}: {name} differ: {what}; --allow {name}"
                )
            allowed.append({"file": str(side.path), "difference": name, "what": what})
    ids = sorted(set.intersection(*(set(side.rows) for side in sides)))
    if not ids:
        raise ValueError(f"{sides[0].path}: has no example in common with the other files")
    shown = shown_in(COMPARISON)
    scored = score_sets(
        [
            CaptionSet({i: side.rows[i].prediction for i in ids}, {i: side.rows[i].references for i in ids})
            for side in sides
        ],
        use_java=use_java,
        metrics=[metric.name for metric in shown if metric.score is not None],
    )
    values = {metric.name: _values(metric, sides, scored, ids) for metric in shown}
    source_ids = [sides[0].rows[i].source_id for i in ids]
    bootstrap = SourceBootstrap(source_ids)
    entries = {name: _entries(each, bootstrap) for name, each in values.items()}
    files = [_file_entry(side, {name: entries[name][k] for name in entries}) for k, side in enumerate(sides)]
    cider = [np.array([one.per_example[i]["CIDEr"] for i in ids], dtype=np.float64) for one in scored]
    for k, side in enumerate(sides[1:], 1):
        files[k] |= {
            "changes": _how_made(sides[0], side),
            "apart": _apart(ids, sides[0], side, cider[0], cider[k], examples),
        }
    return {
        "allowed": allowed,
        "num_examples": len(ids),
        "num_sources": len(set(source_ids)),
        "tokeniser": scored[0].tokeniser,
        "remark": cider_remark(scored[0].attainable),
        "files": files,
    }


def _file_entry(side: Side, scores: dict[str, dict[str, Any] | None]) -> dict[str, Any]:
    row = next(iter(side.rows.values()))
    cider = scores["CIDEr"] or {}
    return {
        "path": str(side.path),
        "modality": row.modality,
        "variant": side.meta.get("variant", "unknown"),
        "scores": scores,
        # The two that were there before "scores", where scripts look for them.
        "CIDEr": cider["value"],
        **{key: cider[key] for key in ("interval", "difference", "difference_interval") if key in cider},
        "SPICE": scores["SPICE"],
    }


@dataclass(frozen=True)
class _Values:
    """One metric of one file: of the whole set, and of each example [N] where it has such values."""

    whole: float
    each: NDArray[np.float64] | None


def _values(
    metric: Metric, sides: Sequence[Side], scored: Sequence[CaptionScores], ids: Sequence[str]
) -> list[_Values | None]:
    """One metric of every file: computed here, or where that takes a Java program read from where ``rb score`` wrote it."""
    found: list[_Values | None] = []
    for side, one in zip(sides, scored, strict=True):
        if not metric.per_example:
            value = one.scores[metric.name]
            found.append(None if value is None else _Values(value, None))
            continue
        values = read_scored(side, metric.name, ids) if metric.score is None else None
        if metric.score is not None:
            values = np.array([one.per_example[i][metric.name] for i in ids], dtype=np.float64)
        found.append(None if values is None else _Values(float(values.mean()), values))
    return found


def read_scored(side: Side, metric: str, ids: Sequence[str]) -> NDArray[np.float64] | None:
    """A metric of each example [N] as ``rb score`` wrote it for exactly this file; none where it did not, or was skipped."""
    scores = metrics_path(side.path)
    if not scores.is_file() or not examples_path(scores).is_file():
        return None
    metrics = read(scores)
    if not isinstance(metrics, dict):
        return None
    if metrics.get("predictions_sha256") != file_sha256(side.path):
        return None  # of an older file under this name
    found = {}
    for _, row in parse_lines(examples_path(scores).read_bytes(), str(examples_path(scores))):
        if isinstance(row, dict) and isinstance(row.get(metric), (int, float)):
            found[str(row.get("id"))] = float(row[metric])
    return np.array([found[i] for i in ids]) if all(i in found for i in ids) else None


def _entries(values: Sequence[_Values | None], bootstrap: SourceBootstrap) -> list[dict[str, Any] | None]:
    """Of every file ``value`` and ``interval`` (null without values per example), and beside the first ``difference`` and its interval."""
    means = [None if one is None or one.each is None else bootstrap.means(one.each[None])[0] for one in values]
    found: list[dict[str, Any] | None] = []
    for one, drawn in zip(values, means, strict=True):
        if one is None:
            found.append(None)
            continue
        entry: dict[str, Any] = {"value": one.whole, "interval": None if drawn is None else bootstrap.interval(drawn)}
        if found and values[0] is not None:
            paired = None if drawn is None or means[0] is None else bootstrap.interval(drawn - means[0])
            entry |= {"difference": one.whole - values[0].whole, "difference_interval": paired}
        found.append(entry)
    return found


def _how_made(first: Side, other: Side) -> dict[str, tuple[str, str]]:
    """Differences of the runs' configurations, and under ``meta.`` of the meta files."""
    metas = [{k: v for k, v in side.meta.items() if k not in _OF_THE_FILE} for side in (first, other)]
    return changes({"config": first.config, "meta": metas[0]}, {"config": other.config, "meta": metas[1]})


def _apart(
    ids: Sequence[str],
    first: Side,
    other: Side,
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    number: int,
) -> list[dict[str, Any]]:
    """The examples with the largest gain, then those with the largest loss; equal scores are never listed."""
    order = np.argsort(before - after, kind="stable")
    gains = [i for i in order[:number] if after[i] > before[i]]
    losses = [i for i in order[::-1][:number] if after[i] < before[i]]
    return [
        {
            "id": ids[i],
            "CIDEr": [float(before[i]), float(after[i])],
            "predictions": [first.rows[ids[i]].prediction, other.rows[ids[i]].prediction],
            "references": first.rows[ids[i]].references,
        }
        for i in (*gains, *losses)
    ]


def _flatten(tree: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(tree, dict) and tree:
        return {
            k: v
            for key, value in tree.items()
            for k, v in _flatten(value, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    return {prefix: json.dumps(tree, sort_keys=True, default=str)}
