"""What a manifest says of stored features (``rb/sources/features.py``). Without torch, so that commands which only look at manifests start at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rb.core import strict_json as strict
from rb.core.strict_json import FormatError, checked

ITEM_BYTES = {"float32": 4, "bfloat16": 2}  # by type of the stored numbers


@dataclass(frozen=True)
class FeatureSet:
    """What the features of a set are, as its manifest says it.

    Attributes:
        dtype: ``float32`` or ``bfloat16``, as they are stored.
        shape: of one source, [P, V] or [1 + G, point width].
        made_from: digest of the manifest whose sources were encoded.
        settings: all that decides the features: the encoder's digest and settings, and the transform's.
    """

    dtype: str
    shape: list[int]
    made_from: str
    settings: dict[str, Any]

    @property
    def num_bytes(self) -> int:
        """Of one source's features."""
        return self.shape[0] * self.shape[1] * ITEM_BYTES[self.dtype]

    def difference(self, settings: Mapping[str, Any]) -> str | None:
        """The first setting that is another one in ``settings``, in a few words; none if all are equal."""
        return first_difference(self.settings, settings)


def first_difference(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """The first setting by which what a set stores is not what a model wants, in a few words; none if all are equal."""
    for name in {**stored, **wanted}:
        theirs, ours = stored.get(name), wanted.get(name)
        if theirs != ours:
            return f"{name} {_shown(theirs)}, this model has {_shown(ours)}"
    return None


_FIELDS: dict[str, strict.Check] = {
    "dtype": strict.name,
    "shape": strict.numbers,
    "made_from": strict.name,
    "settings": strict.anything,
}


def parse_feature_set(raw: object, where: str) -> FeatureSet:
    """``features`` of a manifest, its fields and types checked."""
    about = FeatureSet(**checked(raw, where, _FIELDS))
    if about.dtype not in ITEM_BYTES:
        raise FormatError(f"{where}: dtype {about.dtype!r} is not one of {', '.join(ITEM_BYTES)}")
    if len(about.shape) != 2 or not all(isinstance(n, int) and n > 0 for n in about.shape):
        raise FormatError(f"{where}: shape {about.shape} must be two whole numbers above 0")
    if not isinstance(about.settings, dict):
        raise FormatError(f"{where}: settings must map names to values")
    return about


def _shown(value: object) -> str:
    return f"{value[:19]}..." if isinstance(value, str) and len(value) > 24 else str(value)
