"""The one place where a wish for a device (``auto``, ``cpu``, ``cuda``, ``cuda:1``) becomes a device, before anything is loaded.

Used by every command and function that takes a device, and by ``rb/core/dist.py`` for the device of a rank.
"""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

AUTO = "auto"


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--device``, for every command that runs a model in one process."""
    parser.add_argument(
        "--device", default=AUTO, metavar="DEVICE", help="auto (default: a GPU where there is one), cpu, cuda or cuda:N"
    )


def usable_device(wish: torch.device | str) -> torch.device:
    """The device that ``wish`` names, known to be there: ``cuda`` is the first GPU, ``auto`` the first GPU or else the CPU.

    Raises:
        ValueError: not the name of a device, no CUDA here, or no GPU of that number; says what there is.
    """
    import torch  # here: commands that only parse need not wait for it

    name = str(wish)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == AUTO:
        name = "cuda" if gpus else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"cuda(?::(\d{1,4}))?", name, re.ASCII)
    if match is None:
        raise ValueError(f"device {name!r}: must be auto, cpu, cuda or cuda:N (N counts GPUs from 0)")
    if not gpus:
        cause = (
            f"this torch ({torch.__version__}) was built without CUDA: install a build with it (docs/install.md)"
            if torch.version.cuda is None
            else "torch sees no GPU: look at nvidia-smi and CUDA_VISIBLE_DEVICES"
        )
        raise ValueError(f"device {name!r}: {cause}, or use the device cpu")
    number = int(match[1] or 0)
    if number >= gpus:
        there = "cuda:0" if gpus == 1 else f"cuda:0 to cuda:{gpus - 1}"
        raise ValueError(f"device {name!r}: torch sees {gpus} GPU{'s' * (gpus > 1)} here, {there}")
    return torch.device("cuda", number)
