"""Files of ``torch.save``: the project's one reader of them, in weights-only mode, so that nothing in them is run.

Who uses it: the readers of weights (`rb/model/weights/readers.py`) and of clouds (`rb/sources/cloud_arrays.py`).
"""

from __future__ import annotations

import mmap
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# What torch raises for damaged files; it documents none.
DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    OSError,
    EOFError,
    LookupError,
    AttributeError,
    AssertionError,
    ValueError,
    TypeError,
    ArithmeticError,
    MemoryError,
    ImportError,
    struct.error,
)
_MAX_PICKLE = 1 << 26  # of a state dict: 400,000 tensors
_MAX_TENSOR_PICKLE = 1 << 12  # of one tensor; torch writes 200 bytes
_ALLOCATES = b"bytearray"  # weights-only mode would make one of any length that a pickle asks for
# What the pickle of one plain tensor refers to.
_TENSOR_NAMES = frozenset(
    {"torch._utils _rebuild_tensor_v2", "collections OrderedDict"}
    | {f"torch {kind}Storage" for kind in ("Double", "Float", "Half", "BFloat16", "Byte", "Short", "Int", "Long")}
)


def load_torch(path: Path, harmless: Sequence[Any] = ()) -> Any:
    """What ``torch.save`` put into a file: tensors on the CPU and plain containers. Mapped, not copied, where the format allows it.

    Args:
        harmless: more names that may stand in it, as ``torch.serialization.safe_globals`` takes them.

    Raises:
        DAMAGE: not such a file, or holding more than tensors and plain containers.
    """
    import torch

    mapped = _pickle_in(path, _MAX_PICKLE) is not None
    with torch.serialization.safe_globals(list(harmless)):
        # Only torch's zip format can be mapped; files of before 2020 may be older.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def load_tensor(path: Path) -> Tensor:
    """The one plain tensor that a file holds, mapped.

    Raises:
        DAMAGE: as ``load_torch``; another content than one tensor, or torch's format of before 2020.
    """
    data = _pickle_in(path, _MAX_TENSOR_PICKLE)
    if data is None:
        raise ValueError("not a zip file as torch.save writes it")
    for operation, value, _ in pickletools.genops(data):
        if operation.name == "STACK_GLOBAL" or (operation.name == "GLOBAL" and value not in _TENSOR_NAMES):
            raise ValueError(f"it must hold one plain tensor, and refers to {str(value or operation.name)[:80]}")
    tensor = load_torch(path)
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"it must hold one plain tensor, got a {type(tensor).__name__}")
    if not holds_its_numbers(tensor):
        raise ValueError("its tensor claims more numbers than the file holds")
    return tensor.detach()


def holds_its_numbers(tensor: Tensor) -> bool:
    """Whether a tensor of a file is a plain one, with no more numbers than its storage: strides may repeat some without end."""
    import torch

    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return plain and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _pickle_in(path: Path, most: int) -> bytes | None:
    """The pickle in a file of torch's zip format; none where it is of another.

    Raises:
        ValueError, BadZipFile: a member is compressed (torch compresses none), or the pickle is larger than files of tensors have.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(_ALLOCATES) >= 0:
                raise ValueError("holds a bytearray")
        return None
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not stored or sum(member.file_size for member in members) > path.stat().st_size:
            raise zipfile.BadZipFile("its members claim more bytes than the file has, or are compressed")
        pickles = [member for member in members if member.filename.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > most:
            raise ValueError(f"its data.pkl is missing, comes twice, or has more than {most:,} bytes")
        data = archive.read(pickles[0])
    if _ALLOCATES in data:
        raise ValueError("holds a bytearray")
    return data
