"""The Python API: ``from rb.api import RegionBLIP``."""

from rb.api.inputs import InputError
from rb.api.model import RegionBLIP

__all__ = ("InputError", "RegionBLIP")
