"""Pickles of lists of numpy arrays (ModelNet40's ``modelnet40_test_8192pts_fps.dat``), read without running or building anything they ask for.

A pickle is a program for a small stack machine. Here its steps are followed with plain values and notes: an array becomes a note of its type,
its shape and the place of its numbers in the file, which are read when the array is asked for. So a file of 2 GB costs some megabytes, and
the four names that an array's pickle refers to (numpy's constructor, its two types, a codec) are compared, never looked up.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from rb.core.stand_ins import stand_in
from rb.core.text import shown

MAX_STEPS = 1_000_000  # the 9,843 clouds of ModelNet40 take 490,000 (protocol 4) to 674,000 (1)
MAX_TEXT = 1 << 24  # bytes of one array; ModelNet40's have 196,608, and as text they take four times as many
_MAX_LINE = 1 << 10
_INLINE = 64  # bytes that are kept as they are; longer ones are only noted
_RECONSTRUCT = {"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"}
_NDARRAY, _DTYPE, _ENCODE = "numpy ndarray", "numpy dtype", "_codecs encode"
_NAMES = _RECONSTRUCT | {_NDARRAY, _DTYPE, _ENCODE}
_KINDS = {f"{kind}{size}" for kind, sizes in (("f", "248"), ("i", "1248"), ("u", "1248")) for size in sizes}
_NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"}
_BYTES = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BINSTRING", "SHORT_BINSTRING"}
_TEXTS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_PREFIX = {
    "SHORT_BINBYTES": 2,
    "SHORT_BINSTRING": 2,
    "SHORT_BINUNICODE": 2,
    "BINBYTES8": 9,
    "BINUNICODE8": 9,
    "UNICODE": 1,
}
_VALUES = _NUMBERS | _BYTES | _TEXTS
_MARK = object()


class ArrayPickleError(ValueError):
    """A pickle that holds, or asks for, anything but lists of arrays of numbers. Nothing of it was run."""


@dataclass
class _Name:
    name: str


@dataclass
class _Span:
    """Bytes of the file: ``text`` where they are UTF-8 of a text whose letters are the bytes (protocol 2)."""

    start: int
    size: int
    text: bool


@dataclass
class _Type:
    kind: str
    order: str = "<"


@dataclass
class StoredArray:
    """An array in the file, not read yet."""

    shape: tuple[int, ...] = ()
    kind: str = ""
    fortran: bool = False
    numbers: _Span | bytes | str = b""


class _Bounded:
    """A file from which no step takes more than an array may have."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if size > MAX_TEXT:
            raise ArrayPickleError(f"it claims an array of {size:,} bytes, at most {MAX_TEXT:,} are read")
        return self._file.read(size)

    def readline(self) -> bytes:
        line = self._file.readline(_MAX_LINE + 1)
        if len(line) > _MAX_LINE:
            raise ArrayPickleError(f"it has a line of more than {_MAX_LINE:,} bytes")
        return line


class ArrayPickle:
    """The lists of arrays in ``path``: ``rows`` has their places; ``read`` gives the numbers of one; threads may read at the same time.

    Raises:
        ArrayPickleError: the file refers to anything but numpy's array constructors, or holds other values.
        ValueError: it is damaged or no pickle.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            other = stand_in(file.read(1024))
            if other:
                raise ValueError(f"{path}: not a pickle of arrays: {other}")
            file.seek(0)
            try:
                self.rows = _lists(_Machine(_Bounded(file)).run())
            except ArrayPickleError as error:
                raise ArrayPickleError(
                    f"{path}: refused, {error}. Only lists of numpy arrays are read from it, and nothing was run; "
                    "use the data set's text files, or download it again"
                ) from None
            except (ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError) as error:
                words = " ".join(str(error).split())[:200]
                raise ValueError(
                    f"{path}: not a readable pickle of arrays ({words or type(error).__name__}); download it again"
                ) from None

    def read(self, array: StoredArray) -> NDArray[Any]:
        """The numbers of one array.

        Raises:
            ValueError: their bytes do not fit its shape; the message has no path.
        """
        numbers = array.numbers
        if isinstance(numbers, _Span):
            with self.path.open("rb") as file:
                file.seek(numbers.start)
                data = file.read(numbers.size)
            numbers = data.decode("utf-8", "surrogatepass") if numbers.text else data
        data = numbers.encode("latin-1") if isinstance(numbers, str) else numbers
        dtype = np.dtype(array.kind)
        if len(data) != math.prod(array.shape) * dtype.itemsize:
            raise ValueError(f"{len(data):,} bytes of numbers for an array {list(array.shape)} of {dtype}")
        return np.frombuffer(data, dtype).reshape(array.shape, order="F" if array.fortran else "C")


def _lists(found: Any) -> list[list[StoredArray]]:
    rows = found if isinstance(found, list | tuple) else [found]
    if not all(isinstance(row, list) for row in rows):
        raise ArrayPickleError("it holds other things than lists of arrays")
    different = {id(row): row for row in rows}
    if len(different) < len(rows):
        raise ArrayPickleError("it holds the same list again and again")
    if not all(isinstance(part, StoredArray) and part.kind for row in rows for part in row):
        raise ArrayPickleError("it holds other things than lists of arrays")
    return list(rows)


class _Machine:
    """The stack machine that a pickle is a program for, with plain values and notes on its stack."""

    def __init__(self, file: _Bounded) -> None:
        self.file = file
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """What the last step leaves, after all steps were followed."""
        for count, (step, value, place) in enumerate(pickletools.genops(self.file)):  # type: ignore[arg-type]
            if count > MAX_STEPS:
                raise ArrayPickleError(f"it has more than {MAX_STEPS:,} steps")
            if step.name == "STOP":
                (found,) = self.stack
                return found
            if step.name in _VALUES:
                self.stack.append(_kept(step.name, value, place or 0, self.file))
            elif step.name in _STEPS:
                _STEPS[step.name](self, value)
            else:
                raise ArrayPickleError(f"it asks for the step {step.name}, which no list of arrays needs")
        raise ValueError("it ends before its last step")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        for at in range(len(self.stack) - 1, -1, -1):
            if self.stack[at] is _MARK:
                parts = self.stack[at + 1 :]
                del self.stack[at:]
                return parts
        raise ValueError("a list without a begin")

    def last(self, size: int) -> tuple[Any, ...]:
        """The last ``size`` values, taken off."""
        if len(self.stack) < size:
            raise ValueError("a step without its values")
        parts = tuple(self.stack[-size:])
        del self.stack[-size:]
        return parts

    def remember(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def extend(self, parts: Sequence[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise ArrayPickleError(f"it appends to a {type(target).__name__}")
        target.extend(parts)


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda *_: None),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": lambda machine, _: machine.push(_MARK),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.push(machine.last(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.last(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.last(3)),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "LIST": lambda machine, _: machine.push(machine.since_mark()),
    "APPEND": lambda machine, _: machine.extend(machine.last(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda machine, value: machine.remember(int(value))),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, value: machine.push(machine.memo[int(value)])),
    "GLOBAL": lambda machine, value: machine.push(_named(*value.split(" ", 1))),
    "STACK_GLOBAL": lambda machine, _: machine.push(_named(*machine.last(2))),
    "REDUCE": lambda machine, _: machine.push(_called(*machine.last(2))),
    "BUILD": lambda machine, _: _set(machine.last(1)[0], machine.stack[-1]),
}


def _kept(name: str, value: Any, place: int, file: _Bounded) -> Any:
    """A value of the pickle as it goes on the stack: long bytes and texts as a note of where they stand."""
    size = len(value) if isinstance(value, str | bytes) else 0
    if size <= _INLINE or name == "UNICODE":  # one line of text; its letters are escaped in the file
        return value
    start = place + _PREFIX.get(name, 5)
    return _Span(start, file.tell() - start, name in _TEXTS)


def _named(module: Any, name: Any) -> _Name:
    if not (isinstance(module, str) and isinstance(name, str)):
        raise ArrayPickleError("it asks for a name that is no text")
    if f"{module} {name}" not in _NAMES:
        raise ArrayPickleError(f"it asks for {shown(f'{module}.{name}', 80)}")
    return _Name(f"{module} {name}")


def _called(called: Any, arguments: Any) -> Any:
    """What a call would give: a note of it."""
    if not isinstance(called, _Name) or not isinstance(arguments, tuple):
        raise ArrayPickleError("it calls something that is no constructor of arrays")
    if called.name in _RECONSTRUCT and arguments and arguments[0] == _Name(_NDARRAY):
        return StoredArray()
    # Texts only are looked up or shown: to hash or write a nest of a million tuples would end the interpreter.
    if called.name == _DTYPE and arguments and isinstance(arguments[0], str) and arguments[0] in _KINDS:
        return _Type(arguments[0])
    if called.name == _ENCODE and len(arguments) == 2 and arguments[1] in ("latin1", "latin-1"):
        return arguments[0]
    wanted = arguments[0] if arguments and isinstance(arguments[0], str) else type(arguments).__name__
    raise ArrayPickleError(f"it asks for {called.name.replace(' ', '.')} of {wanted!r:.80}")


def _set(state: Any, target: Any) -> None:
    """The state of an array (version, shape, type, by columns, numbers) or of a type (version, byte order, and six fields of records)."""
    if isinstance(target, _Type):
        _, order, *rest = state
        if order not in ("<", ">", "|", "=") or rest[:3] != [None, None, None]:
            raise ArrayPickleError("it holds records, not numbers")
        target.order = "|" if order == "|" else order
        return
    if not isinstance(target, StoredArray):
        raise ArrayPickleError("it sets what is no array")
    _, shape, kind, fortran, numbers = state
    sound = isinstance(kind, _Type) and isinstance(shape, tuple) and len(shape) <= 2
    if not sound or not all(type(n) is int and 0 <= n < 1 << 31 for n in shape):
        raise ArrayPickleError("it holds an array of more than two axes, or of no numbers")
    if not isinstance(numbers, _Span | bytes | str):
        raise ArrayPickleError("it holds an array of objects")
    target.shape, target.kind = shape, kind.order + kind.kind
    target.fortran, target.numbers = bool(fortran), numbers
