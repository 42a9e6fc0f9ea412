"""The table of sources: one row for each kind of input that a frozen encoder reads.

A new source is one class in a file of this folder and one row here; then any modality may name it in ``rb/core/modality.py``.
"""

from __future__ import annotations

from typing import Any

from rb.core.modality import modality_spec
from rb.sources.images import ImageSource
from rb.sources.points import PointSource
from rb.sources.source import Source

SOURCES: dict[str, Source[Any]] = {source.name: source for source in (ImageSource(), PointSource())}


def source_of(modality: str) -> Source[Any]:
    """The row of the source that ``modality`` names; ``ValueError`` for an unknown modality or source."""
    name = modality_spec(modality).source
    try:
        return SOURCES[name]
    except KeyError:
        raise ValueError(
            f"modality {modality!r} names the unknown source {name!r}; known: {', '.join(SOURCES)}"
        ) from None


def media_extensions() -> tuple[str, ...]:
    """The extensions of every source, in the table's order."""
    return tuple(extension for source in SOURCES.values() for extension in source.extensions)
