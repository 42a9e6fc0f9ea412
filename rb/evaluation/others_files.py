"""Predictions in the forms of others' tools, and back: ``rb export-predictions`` and ``rb score --lmms-eval``.

``coco``: [{image_id, caption}]. ``dam``: {mask id: text}, for DLC-Bench. ``vlmevalkit``: a TSV of index, image, question, answer, prediction.
``lmms-eval``: the log that its model ``from_log`` replays. That model passes over any file that it cannot read without a word, and fails much later,
so what is written is read here once more as it reads it, and compared.
"""

from __future__ import annotations

import ast
import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rb.core.files import write_json, write_whole
from rb.core.modality import IMAGE, IMAGE_REGION
from rb.core.strict_json import FormatError, dumps, parse_foreign, read, read_bytes
from rb.data.predictions import Prediction
from rb.evaluation.coco_results import OTHER

_SAMPLES = re.compile(r".*_samples_(.+)")  # 20261129_041133_samples_refcoco_bbox_val.jsonl
_SPLIT = re.compile(r"(?<![a-z])(train|val|testA|testB|test)$")
_MOST_LETTERS = 100_000  # of a list in text form
_MOST_BYTES = 1 << 30


def write_others(rows: Sequence[Prediction], form: str, out: Path, task: str | None, doc_ids: Path | None) -> str:
    """Write ``rows`` in one of ``FORMS``; says in a line what was written.

    Args:
        task: of lmms-eval, the name of its task.
        doc_ids: of lmms-eval, {our id: doc_id}; by default the place of the row, which is written beside ``out``.

    Raises:
        ValueError: two rows would have one id there, ids and documents that do not belong together, no task.
    """
    if form == "lmms-eval":
        return _write_lmms_eval(rows, out, task, doc_ids)
    return _WRITERS[form](rows, out)


def _write_coco(rows: Sequence[Prediction], out: Path) -> str:
    names = _unique(rows, lambda row: _tail(row.source_id) if row.object_id is None else row.id)
    write_json(out, [{"image_id": int(n) if n.isdecimal() else n, "caption": r.prediction} for n, r in names.items()])
    return f"{len(rows):,} captions in {out}"


def _write_dam(rows: Sequence[Prediction], out: Path) -> str:
    names = _unique(rows, lambda row: _tail(row.source_id) if row.object_id is None else row.object_id)
    write_json(out, {name: row.prediction for name, row in names.items()})
    return f"{len(rows):,} captions in {out}"


def _write_vlmevalkit(rows: Sequence[Prediction], out: Path) -> str:
    text = io.StringIO()
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    table.writerow(["index", "image", "question", "answer", "prediction"])
    for index, row in enumerate(rows):
        table.writerow([index, row.id, "", dumps(row.references), row.prediction])
    write_whole(out, text.getvalue())
    return (
        f"{len(rows):,} rows in {out}; its caption scorer has no PTB tokeniser, so its CIDEr is another one than ours"
    )


def _write_lmms_eval(rows: Sequence[Prediction], out: Path, task: str | None, doc_ids: Path | None) -> str:
    if not task:
        raise ValueError("--as lmms-eval needs the name of its task; give it by --task, such as refcoco_bbox_val")
    places = {row.id: k for k, row in enumerate(rows)} if doc_ids is None else _doc_ids(doc_ids, rows)
    ordered = sorted(rows, key=lambda row: places[row.id])
    logs = [{"doc_id": places[row.id], "resps": [[row.prediction]]} for row in ordered]
    write_json(
        out,
        {
            "args": {"model": "regionblip", "model_args": "", "limit": None},
            "model_configs": {"task": task},
            "logs": logs,
        },
    )
    replayed = {one["doc_id"]: one["resps"][0][0] for one in read(out)["logs"]}  # as from_log takes it
    assert replayed == {places[row.id]: row.prediction for row in rows}, "what was written is not what is read"
    where = f"doc_ids of {doc_ids}"
    if doc_ids is None:
        beside = out.with_suffix(".doc_ids.json")
        write_json(beside, places)
        where = f"doc_id is the place of a row, as {beside} lists it: hold it against the order of {task}"
    return f"{len(rows):,} answers to {task} in {out}; {where}"


def _doc_ids(path: Path, rows: Sequence[Prediction]) -> dict[str, int]:
    """Our id to ``doc_id``, checked: every document 0 to N - 1 has one row, as lmms-eval asks for every document of its task."""
    found = read(path)
    if not isinstance(found, dict) or not all(type(value) is int for value in found.values()):
        raise FormatError(f"{path}: must map ids of predictions to doc_ids, whole numbers; write it again")
    missing = [row.id for row in rows if row.id not in found]
    surplus = found.keys() - {row.id for row in rows}
    doubled = [value for value, count in Counter(found.values()).items() if count > 1]
    gaps = sorted(set(range(len(found))) - set(found.values()))
    for problem, one in (
        ("has no doc_id for", missing[:1]),
        ("has ids without a prediction, such as", sorted(surplus)[:1]),
        ("gives more than once the doc_id", doubled[:1]),
        ("has no row for the doc_id", gaps[:1]),
    ):
        if one:
            raise FormatError(
                f"{path}: {problem} {one[0]}; lmms-eval asks for every document of its task: give one prediction for each"
            )
    return found


def _unique(rows: Sequence[Prediction], name: Callable[[Prediction], str]) -> dict[str, Prediction]:
    found: dict[str, Prediction] = {}
    for row in rows:
        if name(row) in found:
            raise FormatError(
                f"ids {found[name(row)].id!r} and {row.id!r} would both be {name(row)!r} there; write one file for each"
            )
        found[name(row)] = row
    return found


def _tail(source_id: str) -> str:
    """``139`` of ``coco/139``."""
    return source_id.rpartition("/")[2]


_WRITERS = {"coco": _write_coco, "dam": _write_dam, "vlmevalkit": _write_vlmevalkit}
FORMS = ("lmms-eval", *_WRITERS)


def read_lmms_eval(path: Path) -> tuple[list[Prediction], dict[str, Any]]:
    """Rows of a log of lmms-eval, ``*_samples_TASK.jsonl`` or the older JSON with ``logs``; and what scoring is to say about them.

    The set is called after the task. References are the answers that the log repeats for its own metrics, else its ``target``.

    Raises:
        FormatError: another format, a document that comes twice, without an answer or without references.
    """
    text = read_bytes(path, _MOST_BYTES).decode("utf-8", "replace")
    name = _SAMPLES.fullmatch(path.stem)
    task = name[1] if name else path.stem
    if path.suffix == ".jsonl":
        places = [(f"{path}, line {k}", line) for k, line in enumerate(text.split("\n"), 1) if line.strip()]
        items = [(place, parse_foreign(line, place)) for place, line in places]
    else:
        whole = parse_foreign(text, str(path))
        logs = whole.get("logs") if isinstance(whole, dict) else None
        if not isinstance(logs, list):
            raise FormatError(f"{path}: has no logs of lmms-eval; give its log of samples")
        configs = whole.get("model_configs")
        task = configs["task"] if isinstance(configs, dict) and isinstance(configs.get("task"), str) else task
        items = [(f"{path}: logs[{k}]", row) for k, row in enumerate(logs)]
    rows: dict[str, Prediction] = {}
    split = _SPLIT.search(task)
    for place, item in items:
        row = _row(item, place, task, split[1] if split else "all")
        if row.id in rows:
            raise FormatError(f"{place}: document {row.id} comes twice; keep one row of each")
        rows[row.id] = row
    if not rows:
        raise FormatError(f"{path}: holds no documents; give its log of samples")
    return list(rows.values()), {"variant": OTHER, "reference_policy": "answers of the log"}


def _row(item: object, place: str, task: str, split: str) -> Prediction:
    row = item if isinstance(item, dict) else {}
    number, said, wanted = row.get("doc_id"), _said(row), _references(row)
    if type(number) is not int or said is None or not wanted:
        raise FormatError(f"{place}: must hold doc_id, filtered_resps or resps, and target; give its log of samples")
    modality = IMAGE_REGION if "bbox" in task or "seg" in task else IMAGE
    source = f"{task}/{number}"
    return Prediction(source, source, None, modality, task, split, said, wanted, None)


def _said(row: Mapping[str, Any]) -> str | None:
    """The model's text: the filtered answer where there is one, else the first answer."""
    for field in ("filtered_resps", "resps"):
        value = row.get(field)
        while isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, str):
            return value
    return None


def _references(row: Mapping[str, Any]) -> list[str]:
    metrics = (value for value in row.values() if isinstance(value, dict) and "pred" in value)
    for value in (*(one.get("answer") for one in metrics), row.get("target")):
        if isinstance(value, str) and value.startswith("[") and len(value) < _MOST_LETTERS:
            try:  # newer versions write str() of the list
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                return [value]
        texts = [value] if isinstance(value, str) else value
        if isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts):
            return texts
    return []
