"""The picture of an example, for every page that shows examples; and the stored media of a predictions file, found again.

The media are in the manifest that the file's meta file names. Where the data is gone or has changed, the reason comes back instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rb.core.modality import modality_spec
from rb.data.formats import Prediction
from rb.data.index import Loaded, ManifestReader
from rb.drawing.cards import missing
from rb.drawing.page import Html
from rb.sources.table import source_of

PICTURE_BUDGET = 6_000_000  # bytes of cards on a page; a browser opens 10 MB pages at once
LEFT_OUT = missing("left out to keep the page small")  # in a picture's place beyond the budget


def load_examples(
    path: Path, rows: Mapping[str, Prediction], meta: Mapping[str, Any], ids: Sequence[str]
) -> tuple[dict[str, Loaded], str]:
    """The stored examples by id, and why some are missing ("" where that is not known).

    Args:
        path: the predictions file.
        rows: its rows by id, in its order.
        meta: its meta file.
        ids: which are wanted.
    """
    place = meta.get("data")
    if not place:
        return {}, f"{path.name} does not name its data (no meta file), so there are no pictures."
    try:
        reader = ManifestReader(str(place), verify=False)
        try:
            if meta.get("manifest_digest", reader.digest) != reader.digest:
                return {}, f"{place} is not what it was when {path.name} was predicted, so there are no pictures."
            return _find(reader, rows, ids), ""
        finally:
            reader.close()
    except (ValueError, OSError) as error:
        return {}, f"The pictures cannot be read: {error}"


def _find(reader: ManifestReader, rows: Mapping[str, Prediction], ids: Sequence[str]) -> dict[str, Loaded]:
    """Prediction writes the manifest's order, so an id's place in the file is its number; otherwise all numbers are searched."""
    numbers = {sample_id: number for number, sample_id in enumerate(rows)}
    found = {}
    for sample_id in ids:
        if numbers[sample_id] < reader.num_examples:
            loaded = reader.example(numbers[sample_id])
            if loaded.id == sample_id:
                found[sample_id] = loaded
    wanted = {rows[sample_id].source_id for sample_id in ids if sample_id not in found}
    if wanted:
        records = {n for n in range(len(reader.index.records)) if reader.index.source_id(n) in wanted}
        samples = reader.index.samples
        for number in range(len(samples)):
            if int(samples[number]["caption"]) == 0 and int(samples[number]["record"]) in records:
                loaded = reader.sample(number)
                found.setdefault(loaded.id, loaded)
    return found


def picture(
    modality: str, loaded: Loaded | None, box: Sequence[float] | None, sample_id: str, still: bool = False
) -> Html:
    """The picture of one example with its box, on every page; a sentence where there is none.

    Args:
        loaded: as stored; none where the data is gone.
        box: in the record's units; none for a whole source.
        still: for pages that run no script.
    """
    if loaded is None:
        return missing("no picture available")
    text = f"{modality.replace('_', ' ')} {sample_id}"
    try:
        return source_of(modality).picture(loaded.stored, box, modality_spec(modality).up, text, still)
    except ValueError as error:
        return missing(str(error))
