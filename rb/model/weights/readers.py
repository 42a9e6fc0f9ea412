"""Reads checkpoint files without running anything in them: safetensors, or ``.pth`` and ``.bin`` in weights-only mode.

Two ways in: ``read_tensors`` (numbers) and ``read_headers`` (names, shapes and types only, as tensors on the meta device, so that all
that maps names and shapes runs on either). Who uses it: the other files of this folder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rb.core.fingerprints import read_and_note
from rb.core.stand_ins import stand_in
from rb.core.strict_json import parse_foreign
from rb.core.tensor_files import read_shapes, read_tensor_file
from rb.core.torch_files import DAMAGE, holds_its_numbers, load_torch

CONTAINERS = ("model", "base_model", "state_dict")
TENSOR_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
Reader = Callable[[Path], dict[str, Tensor]]


class CheckpointError(ValueError):
    """A checkpoint that cannot be used as it is: names the file, the keys and what to do."""


class _Ignored:
    """Stands in for what training scripts leave beside the tensors (their options, scores as numpy numbers): made, never looked at."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


# Point-BERT and ULIP files hold these; the names are resolved to the empty class above, so that no code of theirs is called.
_HARMLESS: list[Any] = [
    (_Ignored, name)
    for name in (
        "argparse.Namespace",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
        "_codecs.encode",
        "easydict.EasyDict",
    )
]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of one file on the CPU; nested containers (``model``, ``base_model``, ``state_dict``) are opened.

    Mapped, not copied, where the format allows it: a tensor that is kept should be cloned or cast.

    Raises:
        CheckpointError: missing, truncated, or holding anything but tensors and plain containers.
    """
    _check_there(path)
    if path.suffix != ".safetensors":
        return _from_pickle(path)
    return read_tensor_file(path, CheckpointError)


def read_headers(path: Path) -> dict[str, Tensor]:
    """As ``read_tensors``, on the meta device: reads a file's header only (files in torch's old format of before 2020 whole).

    Raises:
        CheckpointError: as above; a safetensors file that is shorter than its header says is found, too.
    """
    _check_there(path)
    if path.suffix != ".safetensors":
        return {name: tensor.to("meta") for name, tensor in _from_pickle(path).items()}
    shapes = read_shapes(path, CheckpointError)
    unknown = [f"{name} is of type {dtype}" for name, (_, dtype) in shapes.items() if dtype not in _DTYPES]
    if unknown:
        raise CheckpointError(f"{path}: {unknown[0]}, which this project does not read")
    return {name: torch.empty(shape, dtype=_DTYPES[dtype], device="meta") for name, (shape, dtype) in shapes.items()}


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"checkpoint file {path} does not exist; check model.foundation in the run file")


def _begin(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1024)


def _from_pickle(path: Path) -> dict[str, Tensor]:
    try:
        tree = load_torch(path, _HARMLESS)
    except DAMAGE as error:
        other = stand_in(_begin(path))
        if other:
            raise CheckpointError(f"{path}: {other}") from error
        reason = str(error).strip().splitlines() or [repr(error)]
        raise CheckpointError(
            f"{path} cannot be read as plain tensors ({' '.join(reason)[:500]}); files that need to run code are refused: "
            "if it is cut short, download it again; else get its tensors alone (safetensors) from who made it"
        ) from error
    for container in CONTAINERS:
        if isinstance(tree, dict) and isinstance(tree.get(container), dict):
            tree = tree[container]
            break
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path} holds a {type(tree).__name__}, not a state dict")
    found = {str(key): value.detach() for key, value in tree.items() if isinstance(value, Tensor)}
    for name, tensor in found.items():
        if not holds_its_numbers(tensor):
            raise CheckpointError(
                f"{path}: {name} claims more numbers than the file holds, or another layout; do not use it"
            )
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ``CheckpointError`` names the file if it does not hold one."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; check model.foundation in the run file")
    try:
        tree = parse_foreign(read_and_note(path).decode("utf-8"), str(path))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); download it again") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path} must hold a JSON object, found {type(tree).__name__}")
    return tree


def weights_file(folder: str, option: str, *default_names: str) -> Path:
    """The file that an option names: itself, or the first of ``default_names`` (any suffix known here) inside the folder it names.

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
    for name in default_names:
        for suffix in TENSOR_SUFFIXES:
            if (path / (name + suffix)).is_file():
                return path / (name + suffix)
    raise CheckpointError(f"{option}: {path} holds no {' or '.join(default_names)} ({', '.join(TENSOR_SUFFIXES)})")
