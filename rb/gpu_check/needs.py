"""Packages that the check needs, looked up before anything is imported or built. Standard library only: it runs where they are missing.

`BASE` is what a machine must have. `ZERO2` is what its ZeRO-2 half needs besides: DeepSpeed with all that it requires, but for what torch, transformers
and peft require themselves in every version that we support, and for ninja, which only builds operators.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

# Name to import -> name to install.
BASE = {"torch": "torch", "transformers": "transformers", "peft": "peft"}
ZERO2 = {
    "deepspeed": "deepspeed",
    "hjson": "hjson",
    "msgpack": "msgpack",
    "cpuinfo": "py-cpuinfo",
    "einops": "einops",
    "pydantic": "pydantic",
    "pydantic_core": "pydantic-core",
    "annotated_types": "annotated-types",
    "typing_inspection": "typing-inspection",
}


def missing(packages: Mapping[str, str]) -> list[str]:
    """Names to install of those that cannot be imported."""
    return [package for module, package in packages.items() if not _is_there(module)]


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
