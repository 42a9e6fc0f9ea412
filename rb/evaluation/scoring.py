"""Scores predictions files: reads them, computes their caption metrics together, writes each ``metrics.json``, logs to MLflow.

Used by ``rb score``. Needs no model, no GPU and no data but the file. One file is one set: one modality, one dataset, one
split; the metrics mean nothing over a mixture (CIDEr weighs words by the set they come from), so a mixed file is an error.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rb.core.files import file_sha256, sha256, write_json, write_whole
from rb.core.metrics import METRICS
from rb.core.patient import attempt
from rb.core.run_layout import RUN_JOURNAL, RUN_METRICS, RUN_PREDICTIONS
from rb.core.strict_json import FormatError, dumps
from rb.data.formats import Prediction, read_predictions
from rb.evaluation.caption_metrics import CaptionScores, CaptionSet, score_sets
from rb.evaluation.coco_results import OTHER, read_coco_results
from rb.evaluation.others_files import read_lmms_eval
from rb.evaluation.verdicts import Judge, shares
from rb.tracking import ScoredSet, log_evaluation

# Which model produced the captions: the frozen one, the same on cut-out regions, a trained one; then controls: wrong boxes, empty input;
# then models of others.
VARIANTS = ("base", "crops", "checkpoint", "shuffled", "blind", OTHER)


def score_file(predictions: Path, out: Path | None = None, **options: Any) -> dict[str, Any]:
    """``score_files`` of one file; ``out`` is where ``metrics.json`` goes, by default ``metrics_path``."""
    return score_files([predictions], None if out is None else [Path(out)], **options)[0]


def score_files(  # noqa: PLR0913 (a parameter for each option)
    predictions: Sequence[Path],
    outs: Sequence[Path] | None = None,
    use_java: bool = True,
    use_mlflow: bool = True,
    spice_cache: Path | None = None,
    metrics: Collection[str] = METRICS,
    judge: Judge | None = None,
    annotations: Path | None = None,
    attainable: bool = False,
    lmms_eval: bool = False,
) -> list[dict[str, Any]]:
    """Scores predictions files and returns what each ``metrics.json`` holds (docs/formats.md); writes it and the scores per example.

    All files are read before anything is computed, and one process of each Java program serves all of them. Where rows name parts of their set
    (nocaps' domains), each part is scored as a set by itself too.

    Args:
        predictions: files that ``rb.data.formats.write_predictions`` wrote.
        outs: where each ``metrics.json`` goes; see ``metrics_path`` for the default. Scores per example go beside it, to ``*.examples.jsonl``.
        use_java: without it METEOR and SPICE are skipped.
        use_mlflow: log to a new run and, if the predictions belong to a training run, also to that one at the checkpoint's step.
        spice_cache: folder for SPICE's parsed captions.
        metrics: names out of ``rb.core.metrics.METRICS``.
        judge: decides what is true of each caption; its shares join the scores, their counts and errors are under ``truth``.
        annotations: references in COCO's format; ``predictions`` are then in COCO's result format (`rb.evaluation.coco_results`).
        attainable: also the scores of a perfect captioner.
        lmms_eval: ``predictions`` are logs of lmms-eval (`rb.evaluation.others_files`).

    Raises:
        FormatError: a malformed, repeated or missing row, no row at all, rows of several sets, an example without references.
    """
    started = time.time()
    read = [_read(Path(path), annotations, judge, lmms_eval) for path in predictions]
    parts = [_parts(one.rows) for one in read]
    of_parts = [rows for own in parts for rows in own.values()]
    found = score_sets(
        [
            CaptionSet({row.id: row.prediction for row in rows}, {row.id: row.references for row in rows})
            for rows in (*(one.rows for one in read), *of_parts)
        ],
        use_java=use_java,
        spice_cache=spice_cache,
        metrics=metrics,
        attainable=attainable,
    )
    results, rest = [], iter(found[len(read) :])
    outs = outs or [metrics_path(one.path) for one in read]
    for one, own, scores, out in zip(read, parts, found[: len(read)], outs, strict=True):
        result = _result(one, scores, with_truth=judge is not None)
        if own:
            scored = {part: {"num_examples": len(rows), "scores": next(rest).scores} for part, rows in own.items()}
            result["parts"] = scored
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(
            examples_path(out), _examples(scores, {r.id: v for r, v in zip(one.rows, one.verdicts, strict=True)})
        )
        write_json(out, result)
        if use_mlflow:
            # The scores are written; that the journal's disk is full does not take them back.
            attempt(out, partial(_log, result, one.path, out, started))
        results.append(result)
    return results


@dataclass(frozen=True)
class _File:
    """A predictions file as read: its rows, its meta file, and what the judge found true of each row."""

    path: Path
    rows: Sequence[Prediction]
    meta: Mapping[str, Any]
    verdicts: Sequence[Mapping[str, bool]]


def _read(path: Path, annotations: Path | None, judge: Judge | None, lmms_eval: bool) -> _File:
    if lmms_eval:
        rows, meta = read_lmms_eval(path)
    else:
        rows, meta = read_predictions(path) if annotations is None else read_coco_results(path, annotations)
    _one_set(rows, path)
    for row in rows:
        if not row.references:
            raise FormatError(
                f"{path}: id {row.id!r} has no references to score against; predict on data that has captions"
            )
    _made_by(meta, path)
    return _File(path, rows, meta, judge(rows) if judge is not None else [{} for _ in rows])


def _result(one: _File, found: CaptionScores, with_truth: bool) -> dict[str, Any]:
    """What ``metrics.json`` holds."""
    rows, meta = one.rows, one.meta
    modality, dataset, split = _one_set(rows, one.path)
    truth = shares(rows, one.verdicts)
    return {
        "modality": modality,
        "dataset": dataset,
        "split": split,
        **_made_by(meta, one.path),
        "scores": {**found.scores, **{name: entry["share"] for name, entry in truth.items()}},
        **({"truth": truth} if with_truth else {}),
        "attainable": found.attainable,
        "skipped": found.skipped,
        "spice_cut": found.spice_cut,
        "tokeniser": found.tokeniser,
        "num_examples": len(rows),
        "num_references": sum(len(row.references) for row in rows),
        "set_sha256": set_digest(rows),
        "reference_policy": meta.get("reference_policy"),
        "decoding": meta.get("decoding"),
        "predictions": str(one.path.resolve()),
        "predictions_sha256": file_sha256(one.path),
        **{name: meta[name] for name in ("annotations", "annotations_sha256") if name in meta},
        "versions": {**found.versions, "predicted_with": meta.get("versions")},
    }


def metrics_path(predictions: Path) -> Path:
    """Where a file's scores go.

    ``RUN_DIR/predictions/X.jsonl`` -> ``RUN_DIR/metrics/X.json``; elsewhere, beside it, ``predictions.jsonl`` -> ``metrics.json`` and
    ``X.jsonl`` -> ``X.metrics.json``.
    """
    path = Path(predictions).resolve()
    if path.parent.name == RUN_PREDICTIONS:
        return path.parent.parent / RUN_METRICS / f"{path.stem}.json"
    return path.with_name("metrics.json" if path.stem == "predictions" else f"{path.stem}.metrics.json")


def examples_path(metrics: Path) -> Path:
    """``X.json`` -> ``X.examples.jsonl``: one row per id with its metrics per example, SPICE's categories and what a judge found."""
    return Path(metrics).with_suffix(".examples.jsonl")


def _parts(rows: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    """The parts of a set whose scores are published beside those of the whole (nocaps' domains); empty where there are fewer than two."""
    names = sorted({row.part for row in rows if row.part is not None and row.question is None})
    return {name: [row for row in rows if row.part == name] for name in names} if len(names) > 1 else {}


def set_digest(rows: Sequence[Prediction]) -> str:
    """sha256 of the ids with their references, whatever the order of the rows: only scores of equal sets are compared."""
    content = dumps(sorted([row.id, *row.references] for row in rows))
    return sha256(content)


def _one_set(rows: Sequence[Prediction], path: Path) -> tuple[str, str, str]:
    sets = sorted({(row.modality, row.dataset, row.split) for row in rows})
    if not sets:
        raise FormatError(f"{path}: no predictions in it; predict again")
    if len(sets) > 1:
        listed = "; ".join(" ".join(one) for one in sets)
        raise FormatError(
            f"{path}: rows of {len(sets)} sets ({listed}); a file is scored as one set: write one file for each"
        )
    return sets[0]


def _made_by(meta: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Which model produced the captions, and which examples were left out, by the meta file; without one, a trained model."""
    variant, checkpoint = meta.get("variant", "checkpoint"), meta.get("checkpoint")
    if variant not in VARIANTS:
        raise FormatError(f"{path}: its meta file says variant {variant!r}; known: {', '.join(VARIANTS)}")
    if checkpoint is not None and not isinstance(checkpoint, dict):
        raise FormatError(
            f"{path}: its meta file says checkpoint {checkpoint!r}; it must be null or hold run, name, step"
        )
    left_out = meta.get("left_out") or {}
    if not isinstance(left_out, dict) or not all(type(count) is int and count >= 0 for count in left_out.values()):
        raise FormatError(f"{path}: its meta file says left_out {left_out!r}; it must hold reasons with counts")
    return {"variant": variant, "checkpoint": checkpoint, "left_out": left_out}


def _examples(found: CaptionScores, verdicts: Mapping[str, Mapping[str, bool]]) -> str:
    return "".join(
        dumps({"id": i, **row, **verdicts[i], "SPICE_details": found.spice_details.get(i)}) + "\n"
        for i, row in found.per_example.items()
    )


def task_result(predictions: Path, scores: Mapping[str, float | None], protocol: str | None) -> dict[str, Any]:
    """Scores of another task on a file of ``rb predict``, with what they depend on, as ``metrics.json`` has those of captions."""
    rows, meta = read_predictions(predictions)
    modality, dataset, split = _one_set(rows, predictions)
    return {
        "modality": modality,
        "dataset": dataset,
        "split": split,
        **_made_by(meta, predictions),
        "scores": dict(scores),
        "decoding": meta.get("decoding"),
        "reference_policy": protocol,
        "set_sha256": set_digest(rows),
        "num_examples": len(rows),
        "predictions": str(predictions.resolve()),
    }


def log_task(task: str, predictions: Path, result: Mapping[str, Any], started: float) -> None:
    """``task_result`` to MLflow as scores of captions, under ``TASK/NAME``."""
    named = {f"{task}/{name}": value for name, value in result["scores"].items()}
    # What was computed is printed, whatever the disk of the journals says.
    attempt(predictions, partial(_log, {**result, "scores": named}, predictions, predictions, started, f"-{task}"))


def _log(result: Mapping[str, Any], predictions: Path, out: Path, started: float, suffix: str = "") -> None:
    """To MLflow by way of the journals; ``suffix`` of the evaluation's name.

    Where the predictions lie in a run folder, or a checkpoint names it, that training run gets the scores too, at the checkpoint's
    step; those of other variants under names of their own (``crops/CIDEr``), the base model's at step 0.
    """
    checkpoint = result["checkpoint"] or {}
    run_dir = Path(checkpoint.get("run") or predictions.resolve().parent.parent)
    in_run = (run_dir / RUN_JOURNAL).is_file()
    prefix = "" if result["variant"] == "checkpoint" else f"{result['variant']}/"
    tags = (
        "modality",
        "variant",
        "checkpoint",
        "decoding",
        "reference_policy",
        "set_sha256",
        "tokeniser",
        "num_examples",
    )
    scores = dict(result["scores"])
    for part, found in result.get("parts", {}).items():
        scores |= {f"{part}/{name}": value for name, value in found["scores"].items()}
    log_evaluation(
        {prefix + name: value for name, value in scores.items() if value is not None},
        name=predictions.stem + suffix,
        data=ScoredSet(result["dataset"], result["split"], result["set_sha256"], result["predictions"]),
        run_dir=run_dir if in_run else None,
        job_dir=None if in_run else out.resolve().parent / "evaluations" / (predictions.stem + suffix),
        step=checkpoint.get("step") or 0,
        tags={tag: result[tag] for tag in tags if tag in result},
        started=started,
        checkpoint=str(checkpoint.get("name")) if result["variant"] == "checkpoint" and checkpoint else None,
    )
