"""The Python API: ``from rb.api import RegionBLIP``. Its parts are imported when they are asked for, since they load transformers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rb.api.inputs import InputError
    from rb.api.model import RegionBLIP

__all__ = ("InputError", "RegionBLIP")
_PLACES = {"InputError": "rb.api.inputs", "RegionBLIP": "rb.api.model"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
