"""JSON and JSONL that are checked in full before anyone uses them: the project's one reader of both.

``parse`` is the way in, for bytes; ``read`` for a file, ``parse_lines`` for JSONL. What they return can be shown, written and computed with:
no bottomless nesting, no number beyond 64 bits, no text that UTF-8 cannot hold. A kind of object is described by a table, field -> check; a
check returns what is wrong with a value, or none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

MAX_DEPTH = 64  # lists and objects within each other; the project's own files have at most 8
MAX_FILE_BYTES = 64 << 20  # of a file that is read as one value: settings, results, the index of a checkpoint's shards
MAX_MESSAGE = 2000  # letters of an error
WHOLE_NUMBERS = range(-(2**63), 2**64)  # what numpy, torch and databases hold
_NUMBERS = (int, float)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

Check = Callable[[Any], "str | None"]


class FormatError(ValueError):
    """A file does not hold what its format says; the message names file, place and remedy."""

    def __init__(self, message: str) -> None:
        # A name or value that is quoted whole somewhere cannot fill the screen.
        super().__init__(message if len(message) <= MAX_MESSAGE else message[:MAX_MESSAGE] + " ...")


def text(value: object) -> str | None:
    """Any text."""
    return None if isinstance(value, str) else "must be a text"


def name(value: object) -> str | None:
    """A text that can stand in a message or a table: not empty, on one line."""
    if not isinstance(value, str) or not value:
        return "must be a text that is not empty"
    return None if value.isprintable() else "must not hold control characters or line breaks"


def count(value: object) -> str | None:
    """A whole number, 0 or more."""
    return (
        None
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0
        else "must be a whole number, 0 or more"
    )


def texts(value: object) -> str | None:
    """A list of texts."""
    return None if isinstance(value, list) and all(isinstance(v, str) for v in value) else "must be a list of texts"


def numbers(value: object) -> str | None:
    """A list of numbers."""
    good = isinstance(value, list) and all(isinstance(v, _NUMBERS) and not isinstance(v, bool) for v in value)
    return None if good else "must be a list of numbers"


def share(value: object) -> str | None:
    """A number from 0 to 1."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    return None if good else "must be a number from 0 to 1"


def counts(value: object) -> str | None:
    """Names to whole numbers."""
    return (
        None
        if isinstance(value, dict) and all(count(v) is None for v in value.values())
        else "must map names to whole numbers"
    )


def items(value: object) -> str | None:
    """A list; what it holds is checked one by one."""
    return None if isinstance(value, list) else "must be a list"


def anything(value: object) -> str | None:  # noqa: ARG001 (a check like the others)
    """No check: the value is itself an object with its own table."""
    return None


def or_none(check: Check) -> Check:
    """``check``, or null."""
    return lambda value: None if value is None else check(value)


def checked(
    raw: object, where: str, checks: Mapping[str, Check], optional: Mapping[str, Check] | None = None
) -> dict[str, Any]:
    """``raw`` if it is an object with exactly the fields of ``checks``, each as it must be; else ``FormatError``.

    Fields of ``optional`` may be there too, and are checked where they are.
    """
    if not isinstance(raw, dict):
        raise FormatError(
            f"{where}: must be a JSON object with the fields {', '.join(checks)}, got {type(raw).__name__}"
        )
    known = {**checks, **optional} if optional else checks
    if raw.keys() != checks.keys():
        missing = [field for field in checks if field not in raw]
        if missing:
            raise FormatError(f"{where}: field {missing[0]!r} is missing; the fields are {', '.join(checks)}")
        unknown = [field for field in raw if field not in known]
        if unknown:
            raise FormatError(f"{where}: unknown field {unknown[0]!r}; the fields are {', '.join(known)}")
    for field, check in known.items():
        problem = check(raw[field]) if field in raw else None
        if problem:
            shown = repr(raw[field])
            raise FormatError(
                f"{where}: field {field!r} {problem}, got {shown if len(shown) <= 80 else shown[:77] + '...'}"
            )
    return raw


def dumps(value: object) -> str:
    """One line of JSON. ASCII only: a line separator inside a caption can never break a line of JSONL, whoever reads it."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _no_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a finite number")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("a field is given twice")
    return unique


def _whole(digits: str) -> int:
    value = int(digits) if len(digits) <= 21 else None
    if value is None or value not in WHOLE_NUMBERS:
        raise ValueError(f"the number {_shown(digits)} has more than 64 bits")
    return value


def _real(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {_shown(digits)} is too large")
    return value


def _foreign_whole(digits: str) -> int | float:
    return int(digits) if len(digits) <= 21 and int(digits) in WHOLE_NUMBERS else float(digits)


def _shown(digits: str) -> str:
    return digits if len(digits) <= 24 else f"{digits[:20]}... ({len(digits):,} digits)"


def check_depth(value: Any) -> None:
    """``ValueError`` for lists and objects too deep within each other; by levels, not by recursion."""
    level, depth = [value] if isinstance(value, dict | list) else [], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} lists and objects within each other")
        children = [value.values() if isinstance(value, dict) else value for value in level]
        level = [child for values in children for child in values if isinstance(child, dict | list)]


def _check_texts(value: Any) -> None:
    """Every text can be written as UTF-8."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            item.encode()
        elif isinstance(item, dict):
            waiting += [*item, *item.values()]
        elif isinstance(item, list):
            waiting += item


def parse(data: bytes | str, where: str, remedy: str = "write or download it again") -> Any:
    """Strict JSON: UTF-8, no NaN or infinity, no repeated field, nothing beyond the limits above. ``FormatError`` names ``where``."""
    try:
        decoded = data.decode("utf-8") if isinstance(data, bytes) else data.encode("utf-8").decode("utf-8")
        value = json.loads(
            decoded,
            parse_constant=_no_constant,
            parse_int=_whole,
            parse_float=_real,
            object_pairs_hook=_no_repeats,
        )
        if decoded.count("[") + decoded.count("{") > MAX_DEPTH:
            check_depth(value)
        if _SURROGATE.search(decoded):
            _check_texts(value)
        return value
    except RecursionError:
        problem = f"more than {MAX_DEPTH} lists and objects within each other"
    except UnicodeEncodeError:
        problem = "a text holds half a character, a lone surrogate"
    except ValueError as error:
        problem = str(error)
    raise FormatError(f"{where}: not valid JSON ({problem}); {remedy}")


def foreign_decoder(fields: frozenset[str] | None = None) -> json.JSONDecoder:
    """The rules of ``parse_foreign`` but the depth, for it and for ``json_stream.py``."""
    keep = None if fields is None else lambda item: {k: v for k, v in item.items() if k in fields}
    return json.JSONDecoder(parse_int=_foreign_whole, object_hook=keep)


def parse_foreign(
    text: str, where: str, fields: frozenset[str] | None = None, remedy: str = "download it again"
) -> Any:
    """JSON of others, whose items are checked one by one by who reads it: NaN, infinities, lone surrogates and repeated fields pass.

    A whole number of more than 64 bits becomes a float, so that one item cannot lose a whole data set.

    Args:
        fields: of objects, keep only these while reading: polygons and token lists never fill the memory.
        remedy: what the error advises.
    """
    try:
        value = foreign_decoder(fields).decode(text)
        check_depth(value)
        return value
    except RecursionError:
        problem = f"more than {MAX_DEPTH} lists and objects within each other"
    except ValueError as error:
        problem = str(error)
    raise FormatError(f"{where}: not valid JSON ({problem}); {remedy}")


def read_bytes(path: Path, most: int = MAX_FILE_BYTES) -> bytes:
    """The content of a small file; ``FormatError`` if it has more than ``most`` bytes or is a pipe, ``OSError`` if it cannot be read."""
    if path.is_fifo():
        raise FormatError(f"{path}: is a pipe, whose end may never come; give a file")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise FormatError(f"{path}: more than {most:,} bytes; this is another file than its name says")
    return content


def read(path: Path | str, remedy: str = "write or download it again") -> Any:
    """``parse`` of a whole file."""
    return parse(read_bytes(Path(path)), str(path), remedy)


def lines(data: bytes, where: str) -> Iterator[tuple[str, bytes]]:
    """JSONL: (file and number of the line, the line) of every line that is not empty."""
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            yield f"{where}, line {number}", line


def parse_lines(data: bytes, where: str) -> Iterator[tuple[str, Any]]:
    """JSONL: (file and number of the line, its value) of every line that is not empty."""
    return ((place, parse(line, place)) for place, line in lines(data, where))
