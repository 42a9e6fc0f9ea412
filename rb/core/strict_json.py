"""JSON that is checked in full before anyone uses it. Used by `formats.py` for all it reads.

A kind of object is described by a table, field -> check; a check returns what is wrong with a value, or none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

Check = Callable[[Any], "str | None"]


class FormatError(ValueError):
    """A file does not hold what its format says; the message names file, place and remedy."""


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
    good = isinstance(value, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    return None if good else "must be a list of numbers"


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


def checked(raw: object, where: str, checks: Mapping[str, Check]) -> dict[str, Any]:
    """``raw`` if it is an object with exactly the fields of ``checks``, each as it must be; else ``FormatError``."""
    if not isinstance(raw, dict):
        raise FormatError(
            f"{where}: must be a JSON object with the fields {', '.join(checks)}, got {type(raw).__name__}"
        )
    missing = [field for field in checks if field not in raw]
    if missing:
        raise FormatError(f"{where}: field {missing[0]!r} is missing; the fields are {', '.join(checks)}")
    unknown = [field for field in raw if field not in checks]
    if unknown:
        raise FormatError(f"{where}: unknown field {unknown[0]!r}; the fields are {', '.join(checks)}")
    for field, check in checks.items():
        problem = check(raw[field])
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


def parse(data: bytes | str, where: str) -> Any:
    """Strict JSON: UTF-8, no NaN or infinity, no repeated field, no bottomless nesting. ``FormatError`` names ``where``."""
    try:
        decoded = data.decode("utf-8") if isinstance(data, bytes) else data
        return json.loads(decoded, parse_constant=_no_constant, object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: not valid JSON ({error})") from None
