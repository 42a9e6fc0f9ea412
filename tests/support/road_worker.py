"""One training step in this process; prints, as JSON, the project's own calls that led to each loss.

usage: python -m tests.support.road_worker RUN_FILE
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rb.train
from rb.model import losses

PROJECT = Path(rb.train.__file__).resolve().parent
roads: dict[str, list[str]] = {}


def recorded(loss: Callable[..., Any]) -> Callable[..., Any]:
    """The loss, noting the way that led to it; not where one loss calls another."""

    def call(*args: object, **kwargs: object) -> object:
        own = [f for f in inspect.stack()[1:] if PROJECT in Path(f.filename).resolve().parents]
        if not own[0].filename.endswith("losses.py"):
            roads[own[0].function] = [f"{Path(f.filename).name}:{f.function}" for f in reversed(own)] + [loss.__name__]
        return loss(*args, **kwargs)

    return call


for name in ("itc_loss", "itm_loss", "token_loss", "box_regression_loss"):
    setattr(losses, name, recorded(getattr(losses, name)))
code = rb.train.main(["--run", sys.argv[1]])
print(json.dumps(roads))
sys.exit(code)
