"""Safetensors files, and such bytes: the project's one reader of them. The library checks the header; whatever it raises becomes one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rb.core import heartbeat
from rb.core.stand_ins import stand_in

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".safetensors"
_DAMAGE = (ValueError, TypeError, LookupError, RuntimeError, OverflowError, MemoryError)


@contextmanager
def _open(path: Path, framework: str, kind: type[ValueError]) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (SafetensorError, *_DAMAGE) as error:
        words = " ".join(str(error).split())[:300] or type(error).__name__
        with path.open("rb") as file:
            remedy = stand_in(file.read(1024)) or "download it again"
        raise kind(f"{path} is not a complete safetensors file ({words}); {remedy}") from error


def read_tensor_file(
    path: Path, kind: type[ValueError] = ValueError, wanted: Callable[[str], bool] = lambda _: True
) -> dict[str, Tensor]:
    """The tensors of a file whose names are ``wanted``, mapped, on the CPU.

    Raises:
        ValueError: of class ``kind``: cut, or a header that does not fit the file.
        OSError: it cannot be read.
    """
    with _open(path, "pt", kind) as file:
        found = {}
        for name in filter(wanted, file.keys()):
            found[name] = file.get_tensor(name)
            heartbeat.beat()
        return found


def read_shapes(path: Path, kind: type[ValueError] = ValueError) -> dict[str, tuple[list[int], str]]:
    """Name to (shape, type as the format names it), from the header alone. Raises as ``read_tensor_file``."""
    # As numpy's, since the library maps a file for torch in a way that fails where the file is larger than memory.
    with _open(path, "numpy", kind) as file:
        rows = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: (row.get_shape(), row.get_dtype()) for name, row in rows.items()}


def tensors_of(data: bytes, where: str, kind: type[ValueError] = ValueError) -> dict[str, Tensor]:
    """The tensors in the bytes of a safetensors file, on the CPU; ``ValueError`` of class ``kind`` as of ``read_tensor_file``."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except (SafetensorError, *_DAMAGE) as error:
        raise kind(f"{where}: holds no complete safetensors ({' '.join(str(error).split())[:300]})") from error


def tensor_bytes(tensors: dict[str, Tensor]) -> bytes:
    """The bytes of a safetensors file: the same for the same tensors."""
    from safetensors.torch import save

    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
