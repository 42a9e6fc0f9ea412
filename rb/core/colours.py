"""The range of a cloud's colours: shards and encoders have [0, 1]; files have [0, 1] or 0 to 255, and none says which."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ROUNDING = 1e-3  # what floats lose on the way to 1.0


def unit_colours(colours: NDArray[np.floating]) -> NDArray[np.floating]:
    """``colours`` [N, 3] in [0, 1]: as they are where none is above 1, else divided by 255.

    Decided for the whole cloud: one of 0 to 255 with no channel above 1 would be black all over.

    Raises:
        ValueError: a value below 0 or above 255; the message says which range the colours have.
    """
    if not colours.size:
        return colours
    low, high = float(colours.min()), float(colours.max())
    if not (low >= -_ROUNDING and high <= 255.0 + _ROUNDING):
        raise ValueError(
            f"colours reach from {low:g} to {high:g}; they must be in [0, 1] or 0 to 255 (leave out columns that are no colours)"
        )
    scale = 1.0 if high <= 1.0 + _ROUNDING else 255.0
    return np.clip(colours / scale, 0.0, 1.0).astype(colours.dtype)
