"""Progress bars: the one place that makes them. Shown on stderr only where it is a terminal, on rank 0, and not with ``-q``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from rb.core.verbosity import QUIET, verbosity


def bar(items: Iterable[Any] | None = None, **options: Any) -> Any:
    """Tqdm's bar over ``items``, or one that is updated by hand; the same object without output where none is to be seen.

    Args:
        items: what is counted.
        options: tqdm's; ``disable=True`` hides the bar here whatever the terminal.
    """
    hidden = options.pop("disable", False) or not shown()
    return tqdm(items, disable=hidden, **({"mininterval": 1.0} | options))


def shown() -> bool:
    """Whether this process shows bars."""
    return os.environ.get("RANK", "0") == "0" and verbosity() != QUIET and sys.stderr.isatty()
