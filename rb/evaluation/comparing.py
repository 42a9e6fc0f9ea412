"""Compares prediction files of one set: what differs in how they were made, scores with paired bootstrap intervals, the examples apart.

Used by ``python -m eval.compare``. Files that are not comparable are refused with the difference's name; an allowed one is part of the
result. Every file is compared with the first. CIDEr is computed here; SPICE is taken from where ``eval.score`` wrote it. As text:
``rb/evaluation/comparison_text.py``; as a page: ``comparison_page.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from rb.core.files import file_sha256
from rb.core.run_layout import RUN_CONFIG, RUN_PREDICTIONS
from rb.core.seeding import generator
from rb.core.strict_json import FormatError, parse
from rb.data.formats import Prediction, read_predictions
from rb.evaluation.caption_metrics import score_captions
from rb.evaluation.scoring import examples_path, metrics_path

DIFFERENCES = ("examples", "references", "reference_policy", "decoding")  # what makes scores incomparable
RESAMPLES = 1000
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
    tree = yaml.safe_load(config.read_text(encoding="utf-8")) if config is not None and config.is_file() else {}
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
            said = ", ".join(f"{key.lstrip('.') or name}: {a} against {b}" for key, (a, b) in changed.items())
            found[name] = said
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
        allow: names out of ``DIFFERENCES`` to compare in spite of.
        use_java: without it the ``simple`` tokeniser serves.
        examples: how many of the examples that differ most are listed in each direction.

    Returns:
        ``allowed`` (file, difference, what), ``num_examples``, ``tokeniser``, ``files``: per file ``path``, ``variant``, ``CIDEr``, its
        95 % ``interval``, ``SPICE`` (null, or ``value`` and ``interval``), and but for the first ``difference`` in CIDEr, its paired
        ``difference_interval`` (both in ``SPICE`` too where both files have it), ``changes`` and ``apart``.

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
    scored = [
        score_captions(
            {i: side.rows[i].prediction for i in ids},
            {i: side.rows[i].references for i in ids},
            use_java=use_java,
            metrics=["CIDEr"],
        )
        for side in sides
    ]
    each = np.array([[one.per_example[i]["CIDEr"] for i in ids] for one in scored], dtype=np.float64)  # [files, ids]
    means = _resampled_means(each)  # [files, RESAMPLES]
    files = [_file_entry(side, values.mean(), m) for side, values, m in zip(sides, each, means, strict=True)]
    spice = [read_spice(side, ids) for side in sides]
    for file, values in zip(files, spice, strict=True):
        file["SPICE"] = _spice_entry(values, spice[0] if file is not files[0] else None)
    for k, side in enumerate(sides[1:], 1):
        files[k] |= {
            "difference": float(each[k].mean() - each[0].mean()),
            "difference_interval": _interval(means[k] - means[0]),
            "changes": _how_made(sides[0], side),
            "apart": _apart(ids, sides[0], side, each[0], each[k], examples),
        }
    return {"allowed": allowed, "num_examples": len(ids), "tokeniser": scored[0].tokeniser, "files": files}


def _file_entry(side: Side, score: float, means: NDArray[np.float64]) -> dict[str, Any]:
    row = next(iter(side.rows.values()))
    return {
        "path": str(side.path),
        "modality": row.modality,
        "variant": side.meta.get("variant", "not said"),
        "CIDEr": float(score),
        "interval": _interval(means),
    }


def read_spice(side: Side, ids: Sequence[str]) -> NDArray[np.float64] | None:
    """SPICE of each example [N] as ``eval.score`` wrote it for exactly this file; none where it did not, or was skipped."""
    scores = metrics_path(side.path)
    if not scores.is_file() or not examples_path(scores).is_file():
        return None
    metrics = parse(scores.read_bytes(), str(scores))
    if not isinstance(metrics, dict):
        return None
    if metrics.get("predictions_sha256") != file_sha256(side.path):
        return None  # of an older file under this name
    found = {}
    for number, line in enumerate(examples_path(scores).read_bytes().splitlines(), 1):
        row = parse(line, f"{examples_path(scores)}, line {number}")
        if isinstance(row, dict) and isinstance(row.get("SPICE"), (int, float)):
            found[str(row.get("id"))] = float(row["SPICE"])
    return np.array([found[i] for i in ids]) if all(i in found for i in ids) else None


def _spice_entry(values: NDArray[np.float64] | None, first: NDArray[np.float64] | None) -> dict[str, Any] | None:
    if values is None:
        return None
    entry: dict[str, Any] = {
        "value": float(values.mean()),
        "interval": _interval(_resampled_means(values[None])[0]),
    }
    if first is not None:
        entry["difference"] = float(values.mean() - first.mean())
        entry["difference_interval"] = _interval(_resampled_means((values - first)[None])[0])
    return entry


def _resampled_means(each: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over ``RESAMPLES`` draws of examples with replacement, the same draws for every file: [files, N] -> [files, RESAMPLES]."""
    draws = generator("compare", each.shape[1])
    number = each.shape[1]
    return np.stack([each[:, draws.integers(0, number, number)].mean(axis=1) for _ in range(RESAMPLES)], axis=1)


def _interval(values: NDArray[np.float64]) -> list[float]:
    """The central 95 %."""
    return [float(v) for v in np.quantile(values, [0.025, 0.975])]


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
