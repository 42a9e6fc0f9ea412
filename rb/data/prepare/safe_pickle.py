"""Reads pickles that hold plain data only, and runs nothing: no globals, no calls, no allocation that the file's own size does not back.

Used for files that public datasets ship as pickles (``refs(google).p``, lists of uids). A pickle is a program; the standard reader runs it.
A file of a few bytes can also hold one list a billion times, or keys whose hash takes for ever: keys are flat, and what is read may have no
more values, each list counted wherever it stands, than the file has bytes.

Here only the opcodes that build numbers, texts, lists, tuples, dicts and sets are known, so a file that wants anything else is refused
before anything happens. The readers of the datasets import ``load_plain_pickle``; nothing else in the project reads pickles.
"""

from __future__ import annotations

import io
import json
import pickle
import shlex
import struct
from pathlib import Path
from typing import Any

from rb.core.stand_ins import stand_in
from rb.core.text import shown
from rb.core.text_encoding import HANDLER

MAX_BYTES = 1 << 28  # the largest public file of this kind (refcocog) has 60 MB
MAX_DEPTH = 64

# Everything that plain data needs, protocols 0 to 5. Left out on purpose: OBJ, NEWOBJ, NEWOBJ_EX, REDUCE, BUILD, EXT1-4, PERSID, BINPERSID
# (they call or name code) and BYTEARRAY8, NEXT_BUFFER, READONLY_BUFFER (they allocate what a header claims). The last line names code too;
# it ends in `find_class`, which refuses it by name.
_PLAIN_OPCODES = """
    MARK STOP POP POP_MARK DUP PROTO FRAME NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    LIST EMPTY_LIST APPEND APPENDS TUPLE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 DICT EMPTY_DICT SETITEM SETITEMS
    EMPTY_SET ADDITEMS FROZENSET GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE
    GLOBAL STACK_GLOBAL INST
"""


# What a damaged file makes the standard library's reader raise; it documents no common class for it.
_DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    struct.error,
    MemoryError,
    OverflowError,
    RecursionError,
)


class UnsafePickleError(ValueError):
    """A pickle that asks for more than plain data. Nothing of it was run."""


def _refuse(_unpickler: Any) -> None:
    raise UnsafePickleError("it asks for a step that plain data does not need")


def _flat_keys(build: Any, first: int, step: int) -> Any:
    """The opcode's own work, after its keys are seen to be plain: a nest of tuples is hashed by recursion, and without a memory."""

    def checked(unpickler: Any) -> None:
        for key in unpickler.stack[first::step]:
            if isinstance(key, frozenset) or (
                isinstance(key, tuple) and any(isinstance(k, tuple | frozenset) for k in key)
            ):
                raise UnsafePickleError("it uses a nest of tuples as a key")
        build(unpickler)

    return checked


def _check_size(value: Any, most: int) -> None:
    """``UnsafePickleError`` where ``value`` with its repetitions written out has more than ``most`` values, or more than MAX_DEPTH levels."""
    counted: dict[int, tuple[int, int]] = {}  # id -> (values, depth)
    waiting: list[tuple[Any, bool]] = [(value, False)]
    open_now: set[int] = set()
    while waiting:
        item, ready = waiting.pop()
        parts = [*item.keys(), *item.values()] if isinstance(item, dict) else item
        if ready:
            open_now.discard(id(item))
            below = [counted.get(id(part), (1, 0)) for part in parts]
            total, depth = 1 + sum(n for n, _ in below), 1 + max((d for _, d in below), default=0)
            if total > most or depth > MAX_DEPTH:
                raise UnsafePickleError("it holds the same list again and again, or nests lists without end")
            counted[id(item)] = total, depth
        elif isinstance(item, list | tuple | dict | set | frozenset) and id(item) not in counted:
            if id(item) in open_now:
                raise UnsafePickleError("it holds a list that contains itself")
            if any(isinstance(part, int) and part.bit_length() > 128 for part in parts):
                raise UnsafePickleError("it holds a number of more than 128 bits")
            open_now.add(id(item))
            waiting.append((item, True))
            waiting += [(part, False) for part in parts if isinstance(part, list | tuple | dict | set | frozenset)]


# The reader in Python rather than the one in C: its memo is a dict, so one opcode with a large index cannot allocate gigabytes, and its
# table of opcodes can be cut down. 50,000 references take a few seconds once.
class _PlainUnpickler(pickle._Unpickler):  # noqa: SLF001 (the only spelling of the reader in Python)
    dispatch = dict.fromkeys(range(256), _refuse) | {
        code: pickle._Unpickler.dispatch[code]  # noqa: SLF001
        for code in (getattr(pickle, name)[0] for name in _PLAIN_OPCODES.split())
    }

    dispatch |= {
        code: _flat_keys(pickle._Unpickler.dispatch[code], first, step)  # noqa: SLF001
        for code, first, step in (
            (pickle.DICT[0], 0, 2),
            (pickle.SETITEMS[0], 0, 2),
            (pickle.ADDITEMS[0], 0, 1),
            (pickle.FROZENSET[0], 0, 1),
            (pickle.SETITEM[0], -2, 2),
        )
    }

    def find_class(self, module: str, name: str, /) -> Any:
        raise UnsafePickleError(f"it asks for {shown(f'{module}.{name}', 80)}")


def load_plain_pickle(path: Path) -> Any:
    """The plain data in the pickle ``path``: None, bools, numbers, texts, bytes, lists, tuples, dicts, sets.

    Byte strings of Python 2 become texts: by the rule of ``rb/core/text_encoding.py``.

    Raises:
        UnsafePickleError: the file names code (a class, a function, a numpy scalar), or is larger than ``MAX_BYTES``.
        ValueError: the file is damaged or no pickle.

    The error says how to convert the pickle to ``converted(path)`` where it is trusted.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise UnsafePickleError(f"{path}: {size:,} bytes is more than the {MAX_BYTES:,} that a pickle may have here")
    # From memory: a length that the file claims can then never allocate more than the file has.
    data = path.read_bytes()
    other = stand_in(data)
    if other:
        raise ValueError(f"{path}: not a readable pickle: {other}")
    reader = _PlainUnpickler(io.BytesIO(data), encoding="utf-8", errors=HANDLER)
    try:
        found = reader.load()
        _check_size(found, 2 * size + 1000)
        return found
    except UnsafePickleError as error:
        raise UnsafePickleError(
            f"{path}: refused, {error}. Only plain lists, dicts, numbers and texts are read from pickles; nothing was run. "
            f"If you trust the file, convert it to JSON, which is read in its place: {_conversion(path)}"
        ) from error
    except _DAMAGE as error:
        raise ValueError(
            f"{path}: not a readable pickle ({type(error).__name__}: {error}); download it again"
        ) from error


def converted(path: Path) -> Path:
    """Where the JSON is that a trusted pickle was converted to."""
    return path.with_suffix(".json")


def _conversion(path: Path) -> str:
    """The command that runs the pickle and writes its content as JSON, whole or not at all; numpy's numbers and arrays become plain ones."""
    code = (
        "import json, pathlib, pickle; "
        f'data = pickle.loads(pathlib.Path({json.dumps(str(path))}).read_bytes(), encoding="latin1"); '
        'text = json.dumps(data, default=lambda v: v.tolist() if hasattr(v, "tolist") else list(v)); '
        f"pathlib.Path({json.dumps(str(converted(path)))}).write_text(text)"
    )
    return f"`python -c {shlex.quote(code)}`"
