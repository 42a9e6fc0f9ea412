"""The range of a cloud's colours: shards and encoders have [0, 1]; files have [0, 1] or 0 to 255, and none says which."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_ROUNDING = 1e-3  # what floats lose on the way to 1.0


def unit_colours(colours: NDArray[Any]) -> tuple[NDArray[np.floating], bool]:
    """Colours [N, 3] in [0, 1], and whether they were divided by 255 for it: they are where one is above 1.

    Decided for the whole cloud: one of 0 to 255 with no channel above 1 would be black all over. NaN passes.

    Raises:
        ValueError: a value below 0 or above 255; the message says which range the colours have.
    """
    if not colours.size:
        return colours.astype(np.float32), False
    low, high = float(np.nanmin(colours)), float(np.nanmax(colours))
    if low < -_ROUNDING or high > 255.0 + _ROUNDING:
        raise ValueError(
            f"its colours reach from {low:g} to {high:g}; they must be 0 to 1 or 0 to 255. If these columns are something else, "
            "keep x y z alone"
        )
    divided = high > 1.0 + _ROUNDING
    return np.clip(colours / (255.0 if divided else 1.0), 0.0, 1.0), divided
