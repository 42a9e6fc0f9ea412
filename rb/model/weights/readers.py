"""Reads tensors out of checkpoint files without running anything in them: safetensors, or ``.pth`` in weights-only mode."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

_EDGE = 1 << 20


class CheckpointError(ValueError):
    """A checkpoint that cannot be used as it is: names the file, the keys and what to do."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of one file on the CPU; nested containers (``model``, ``base_model``, ``state_dict``) are opened.

    Raises:
        CheckpointError: missing, truncated, or holding anything but tensors and plain containers.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint file {path} does not exist; check model.foundation in the run file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tree: Any = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a complete safetensors file ({error}); download it again") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(
            f"{path} cannot be read as plain tensors ({error}); files that need to run code are refused"
        ) from error
    for container in ("model", "base_model", "state_dict"):
        if isinstance(tree, dict) and isinstance(tree.get(container), dict):
            tree = tree[container]
            break
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path} holds a {type(tree).__name__}, not a state dict")
    return {str(key): value for key, value in tree.items() if isinstance(value, Tensor)}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ``CheckpointError`` names the file where there is none."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; check model.foundation in the run file")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path} must hold a JSON object, found {type(tree).__name__}")
    return tree


def weights_file(folder: str, option: str, default_name: str) -> Path:
    """The file that an option names: itself, or ``default_name`` (any suffix known here) inside the folder it names.

    Raises:
        CheckpointError: nothing there; says which option and what was looked for.
    """
    path = Path(folder)
    if not folder:
        raise CheckpointError(f"{option} is not set; name a folder or file in the run file")
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"{option}: {path} does not exist")
    for suffix in (".safetensors", ".pth", ".pt"):
        if (path / (default_name + suffix)).is_file():
            return path / (default_name + suffix)
    raise CheckpointError(f"{option}: {path} holds no {default_name}.safetensors, .pth or .pt")


def fingerprint(paths: list[Path]) -> str:
    """An identity of files without reading gigabytes: names, sizes, first and last MiB of each."""
    state = hashlib.sha256()
    for path in sorted(paths):
        size = path.stat().st_size
        state.update(f"{path.name}:{size};".encode())
        with path.open("rb") as file:
            state.update(file.read(_EDGE))
            if size > _EDGE:
                file.seek(max(_EDGE, size - _EDGE))
                state.update(file.read(_EDGE))
    return state.hexdigest()
