"""A set without the sources that other sets hold (``rb data exclude``): training data without the pictures of a test set.

What is shared is what ``rb data verify --against`` names: equal source ids, pictures that look the same, equal clouds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rb.core import progress
from rb.core.urls import Location
from rb.data.compare_sets import shared
from rb.data.formats import Manifest
from rb.data.index import ManifestReader
from rb.data.prepare.common import Reason
from rb.data.shard_writer import ShardWriter


def exclude(
    first: Location, others: Sequence[Location], out: Path, overwrite: bool = False, workers: int = 1
) -> tuple[Manifest, int]:
    """Write the set ``first`` to the folder ``out`` without what ``others`` hold; the new manifest, and how many sources were left out.

    They are listed in ``rejected.jsonl`` behind what was left out before, with reason ``shared_source``. Records keep their bytes and order.

    Raises:
        ValueError: nothing is left, a record was altered, ``out`` is not empty, or sets of different kinds of media.
    """
    taken: dict[str, str] = {}  # source of ``first`` -> what it is in another set
    for other in others:
        found = shared(other, first, workers)
        names = [(name, name) for name in found.ids] + [(mine, theirs) for theirs, mine in found.media]
        taken |= {mine: f"{found.first} holds it as {theirs}" for mine, theirs in names}
    reader = ManifestReader(first)
    about = reader.manifest
    called = about.name, about.modality, about.split
    with ShardWriter(out, *called, overwrite=overwrite, exif=about.exif, groups=about.groups) as writer:
        writer.reject_as(reader.path)
        title = f"{about.name} {about.split}"
        for number in progress.bar(range(about.counts["records"]), desc=title, unit="record", delay=5):
            loaded = reader.record(number)
            source = loaded.record.source_id
            if source in taken:
                writer.reject(source, Reason.SHARED_SOURCE, taken[source])
            else:
                groups = None if loaded.groups is None else loaded.groups.data
                writer.write(loaded.record, loaded.media, loaded.extension, groups)
    reader.close()
    assert writer.manifest is not None
    return writer.manifest, len(taken)
