"""Pictures of the examples of a predictions file: its stored media found again in the manifest that its meta file names, as HTML.

Used by the report's gallery and by the comparison page. Where the data is gone or has changed, the reason comes back instead.
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
from rb.drawing.pictures import cloud_canvas, image_with_box
from rb.sources.images import decode_image
from rb.sources.points import decode_points


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
        reader = ManifestReader(Path(str(place)), verify=False)
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


def picture(row: Prediction, loaded: Loaded | None) -> Html:
    """Image or turnable cloud with the row's box; a sentence where there is none."""
    if loaded is None:
        return missing("no picture available")
    alt = f"{row.modality.replace('_', ' ')} {row.id}"
    try:
        spec = modality_spec(row.modality)
        if spec.source == "image":
            return image_with_box(decode_image(loaded.media, loaded.where), row.box, alt)
        points = decode_points(loaded.media, loaded.where)
        return cloud_canvas(points, row.box, spec.up, alt)
    except ValueError as error:
        return missing(str(error))
