"""``train.compile``: the frozen encoders by ``torch.compile``, which fuses their small operations. Numbers stay equal within rounding.

Of the ViT its layers are one graph, of the point encoder all that stands behind grouping. A graph serves any number of sources: a second number makes one more
graph, which serves all others, and validation, which wants no gradients, has its own. So a run has few graphs, however many modalities it trains.
What carries LoRA (Q-Former, LLM) is not compiled: its projections are one function for several layers (``projections.py``), which would cut each layer
into pieces. CUDA graphs are not recorded: their outputs are overwritten by the next call, and features of a pool are kept longer than that.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rb.model.point_encoder import PointBert

LEAST_CAPABILITY = (7, 0)  # of an NVIDIA GPU for which Triton makes code


def check_can_compile(device: torch.device) -> None:
    """Raises ``ValueError`` with the reason where this device cannot run what ``torch.compile`` makes."""
    if device.type == "cuda":
        if not _has_triton():
            raise ValueError(
                "train.compile: torch.compile makes Triton kernels on a GPU, and triton is not installed; "
                "pip install triton, or use train.compile=false"
            )
        found = torch.cuda.get_device_capability(device)
        if found < LEAST_CAPABILITY:
            raise ValueError(
                f"train.compile: Triton makes kernels for compute capability 7.0 and above, this GPU has {found[0]}.{found[1]}; use train.compile=false"
            )
        return
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ValueError(
            f"train.compile: torch.compile makes C++ on a CPU and needs {compiler}, not found on PATH; install a C++ compiler, or use train.compile=false"
        )


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def compile_encoders(vision: nn.Module, points: PointBert | None, backend: str | Callable[..., Any]) -> None:
    """From the next call on. Names of parameters stay.

    Args:
        vision: BLIP-2's vision model.
        backend: of ``torch.compile``.
    """
    encoder = vision.get_submodule("encoder")
    encoder.compile(backend=backend)
    if points is not None:
        points.read_groups = torch.compile(points.read_groups, backend=backend)  # type: ignore[method-assign]
