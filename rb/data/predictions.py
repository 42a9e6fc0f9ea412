"""Prediction files: one JSON row per example, exactly once, and a meta file beside it that says how they were made.

Prediction writes them, scoring reads them and needs nothing else. What each field means is said in docs/formats.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rb.core import strict_json as strict
from rb.core.files import sha256, write_json, write_whole
from rb.core.modality import MODALITIES
from rb.core.strict_json import FormatError, checked, dumps, parse_lines, read


def sample_id(source_id: str, object_id: str | None) -> str:
    """The identity of a row in prediction files: ``source_id`` for a whole source, ``source_id#object_id`` for a region."""
    return source_id if object_id is None else f"{source_id}#{object_id}"


@dataclass(frozen=True)
class Prediction:
    """One row of a predictions file.

    Attributes:
        object_id: the region; of a question its number.
        references: captions, or the annotators' answers.
        box: as in the record, absolute; none for whole sources.
        question: what was asked; none where the prediction is a caption.
        part: the part of its set that it belongs to, where scores of the parts are published too: nocaps' domain, the type of an answer.
        ranks: who ranked (``itc``, ``itm``) -> what was looked for -> its rank, from 0, or that of each reference (`rb.core.ranking`).
    """

    id: str
    source_id: str
    object_id: str | None
    modality: str
    dataset: str
    split: str
    prediction: str
    references: list[str]
    box: list[float] | None
    question: str | None = None
    part: str | None = None
    ranks: dict[str, dict[str, list[int]]] | None = None

    def tree(self) -> dict[str, Any]:
        """The fields of the row; those that it need not have are left out where they hold nothing."""
        return {name: value for name, value in vars(self).items() if name not in _OPTIONS or value is not None}


_PREDICTION: dict[str, strict.Check] = {
    "id": strict.name,
    "source_id": strict.name,
    "object_id": strict.or_none(strict.name),
    "modality": strict.name,
    "dataset": strict.name,
    "split": strict.name,
    "prediction": strict.text,
    "references": strict.texts,
    "box": strict.or_none(strict.numbers),
}


def _rankings(value: object) -> str | None:
    good = isinstance(value, dict) and all(
        isinstance(found, dict)
        and all(isinstance(r, list) and all(strict.count(n) is None for n in r) for r in found.values())
        for found in value.values()
    )
    return None if good else "must map who ranked to what was looked for, and that to a list of ranks"


_OPTIONS: dict[str, strict.Check] = {"question": strict.text, "part": strict.text, "ranks": _rankings}


def ids_digest(ids: Sequence[str]) -> str:
    """sha256 of a set of ids, whatever their order: scores of unequal sets are never compared."""
    return sha256("\n".join(sorted(ids)))


def predictions_meta_path(path: Path) -> Path:
    """``predictions.jsonl`` -> ``predictions.meta.json``, beside it."""
    return Path(path).with_suffix(".meta.json")


def prediction_lines(rows: Sequence[Prediction]) -> bytes:
    """Rows as they stand in a predictions file, a line each."""
    return "".join(dumps(row.tree()) + "\n" for row in rows).encode()


def parse_predictions(data: bytes, where: str) -> list[Prediction]:
    """The rows of a predictions file's content; ``FormatError`` for a malformed line, or an id that comes twice."""
    rows: list[Prediction] = []
    places: list[tuple[str, str]] = []
    for place, row in parse_lines(data, where):
        rows.append(Prediction(**_check_prediction(row, place)))
        places.append((rows[-1].id, place))
    _unique(places)
    return rows


def write_predictions(path: Path, rows: Sequence[Prediction], meta: Mapping[str, Any]) -> None:
    """All rows of a prediction job, each file in one step, and ``NAME.meta.json`` beside them.

    ``meta`` says how they were made (checkpoint, manifest digest, decoding, reference policy, versions); ``num_predictions``,
    ``ids_sha256`` and ``file_sha256`` are added here, so that a lost row or a mixed pair of files is noticed.
    """
    path = Path(path)
    _unique([(row.id, f"{path}, row {i}") for i, row in enumerate(rows, 1)])
    for i, row in enumerate(rows, 1):
        _check_prediction(row.tree(), f"{path}, row {i}")
    data = prediction_lines(rows)
    own = {
        "num_predictions": len(rows),
        "ids_sha256": ids_digest([row.id for row in rows]),
        "file_sha256": sha256(data),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, data)
    write_json(predictions_meta_path(path), {**meta, **own})


def read_predictions(path: Path) -> tuple[list[Prediction], dict[str, Any]]:
    """The rows and the meta file's content ({} where there is no meta file).

    Raises:
        FormatError: a malformed line, a missing field, an id that comes twice, an id that the meta file counted and is gone.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"{path}: no predictions file there; `rb predict --checkpoint RUN_DIR --data MANIFEST --modality MODALITY --out {path}` writes one"
        )
    data = path.read_bytes()
    rows = parse_predictions(data, str(path))
    meta_path = predictions_meta_path(path)
    if not meta_path.is_file():
        return rows, {}
    meta = read(meta_path)
    if not isinstance(meta, dict):
        raise FormatError(
            f"{meta_path}: must be a JSON object; predict again, or delete it to score the rows without it"
        )
    _compare_with_meta(path, data, [row.id for row in rows], meta)
    return rows, meta


def _check_prediction(raw: object, where: str) -> dict[str, Any]:
    try:
        row = checked(raw, where, _PREDICTION, _OPTIONS)
    except FormatError as error:
        raise FormatError(f"{error}; predict again, or repair the line") from None
    if row["modality"] not in MODALITIES:
        raise FormatError(f"{where}: unknown modality {row['modality']!r}; known: {', '.join(MODALITIES)}")
    expected = sample_id(row["source_id"], row["object_id"])
    if row["id"] != expected:
        raise FormatError(
            f"{where}: id {row['id']!r} does not belong to its source and object ({expected!r}); repair the line"
        )
    return row


def _unique(places: Sequence[tuple[str, str]]) -> None:
    first: dict[str, str] = {}
    for row_id, where in places:
        if row_id in first:
            raise FormatError(
                f"{where}: id {row_id!r} is already in {first[row_id]}; every example has one row: remove one, or predict again"
            )
        first[row_id] = where


def _compare_with_meta(path: Path, data: bytes, ids: Sequence[str], meta: Mapping[str, Any]) -> None:
    counted = meta.get("num_predictions", len(ids))
    remedy = "predict again (a partial or mixed file gives wrong scores)"
    if counted != len(ids):
        raise FormatError(
            f"{path}: {len(ids)} rows, but its meta file counts {counted}: ids are missing or were added; {remedy}"
        )
    if meta.get("ids_sha256", ids_digest(ids)) != ids_digest(ids):
        raise FormatError(
            f"{path}: its ids are not those that its meta file names (one is missing, another was added); {remedy}"
        )
    if "file_sha256" in meta and meta["file_sha256"] != sha256(data):
        raise FormatError(
            f"{path}: was changed after its meta file was written; {remedy}, or delete the meta file to score it as it is"
        )
