"""YAML of run files and plans, read safely: nothing in the file runs, and no file can grow without bound. The project's one reader of YAML.

YAML guesses a type from the look of a word: ``name: 012`` would become the number 10 and ``name: 2026-11-27`` a date. Here such a word stays
a ``Word`` until the field that it belongs to says what it is (``rb/core/run_file.py``). Quoted texts are plain ``str``. Where no field says it,
``typed`` gives YAML's own guess.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from rb.core.strict_json import MAX_DEPTH, WHOLE_NUMBERS, read_bytes

MAX_BYTES = 1 << 16  # the project's largest file has 5 kB; YAML's reader takes a second for 30 kB of short values
MAX_VALUES = 100_000  # of a file with its aliases written out; the project's own have about 50
MAX_SHOWN = 300  # letters of what the reader says
GUESSED = ("null", "bool", "int", "float", "timestamp")  # types that YAML gives a word by its look
TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")  # YAML 1.1, in any case


class Word(str):
    """A word without quotes that YAML would not read as text: ``true``, ``12``, ``1.5``, ``2026-11-27``, ``null`` or nothing."""

    __slots__ = ()

    @property
    def null(self) -> bool:
        """Whether it is YAML's null."""
        return self in ("", "~", "null", "Null", "NULL")


class _Typed(yaml.SafeLoader):
    """The safe loader; a key that stands twice in a mapping, or a number that no field can hold, is an error."""

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, ScalarNode) and key.value in seen and key.value != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value if isinstance(key, ScalarNode) else "")
        return super().construct_mapping(node, deep)


class _Loader(_Typed):
    """As above, with ``Word`` for guessed types."""


def _number(loader: _Typed, node: ScalarNode) -> int | float:
    """A finite number of at most 64 bits."""
    if len(node.value) > 64:
        raise yaml.constructor.ConstructorError(None, None, "a number of more than 64 letters", node.start_mark)
    whole = node.tag.endswith(":int")
    value: int | float = loader.construct_yaml_int(node) if whole else loader.construct_yaml_float(node)
    if value not in WHOLE_NUMBERS if whole else not math.isfinite(value):
        raise yaml.constructor.ConstructorError(None, None, f"{node.value} is too large a number", node.start_mark)
    return value


def _as_word(loader: _Loader, node: ScalarNode) -> Word:  # noqa: ARG001 (PyYAML calls it with the loader)
    return Word(node.value)


for _guessed in GUESSED:
    _Loader.add_constructor(f"tag:yaml.org,2002:{_guessed}", _as_word)
for _guessed in ("int", "float"):
    _Typed.add_constructor(f"tag:yaml.org,2002:{_guessed}", _number)


def read_yaml_file(path: Path, typed: bool = False) -> Any:
    """``read_yaml`` of a file; a ``ValueError`` does not name it yet, as callers say what kind of file it is."""
    return read_yaml(read_bytes(path, MAX_BYTES).decode("utf-8-sig"), typed)


def read_yaml(text: str, typed: bool = False) -> Any:
    """The mappings, lists, texts and words of one YAML document; ``None`` for an empty one.

    Args:
        typed: numbers, truth values, dates and null by their look, in place of words.

    Raises:
        ValueError: no valid YAML (says where), a key that stands twice, nested too deeply, or too large, with its aliases too.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"not valid YAML: more than {MAX_BYTES:,} letters")
    if _nesting(text) > 2 * MAX_DEPTH:
        raise ValueError(f"not valid YAML: nested too deeply (more than {MAX_DEPTH} levels)")
    try:
        loader = (_Typed if typed else _Loader)(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        problem = "nested too deeply"
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        # PyYAML documents the first; others come from odd tags and dates.
        problem = " ".join(str(error).split())[:MAX_SHOWN]
    raise ValueError(f"not valid YAML: {problem}")


def _nesting(text: str) -> int:
    """Brackets that are open at once, or columns of indentation by fours: PyYAML takes quadratic time over either."""
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return max(deepest, max(map(len, re.findall(r"^ +", text, re.MULTILINE)), default=0) // 4)


def _count(node: Node, counted: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """(values, depth) of a node with its aliases written out; each node is visited once."""
    if id(node) in counted:
        found = counted[id(node)]
        if found is None:
            raise ValueError("an alias contains itself")
        return found
    counted[id(node)] = None
    children: list[Node] = []
    if isinstance(node, SequenceNode):
        children = node.value
    elif isinstance(node, MappingNode):
        children = [part for pair in node.value for part in pair]
    else:
        _check_text(node.value)
    parts = [_count(child, counted) for child in children]
    total, depth = 1 + sum(part[0] for part in parts), 1 + max((part[1] for part in parts), default=0)
    if total > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES:,} values with its aliases written out")
    if depth > MAX_DEPTH:
        raise ValueError(f"nested too deeply (more than {MAX_DEPTH} levels)")
    counted[id(node)] = total, depth
    return total, depth


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a text holds half a character, a lone surrogate") from None
