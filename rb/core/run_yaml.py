"""YAML of run files, read safely: words keep their spelling, nothing in the file runs, and no file can grow without bound.

YAML guesses a type from the look of a word: ``name: 012`` would become the number 10 and ``name: 2026-11-27`` a date. Here such a word stays
a ``Word`` until the field that it belongs to says what it is (``rb/core/run_file.py``). Quoted texts are plain ``str``.
"""

from __future__ import annotations

from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_VALUES = 100_000  # of a file with its aliases written out; the project's own have about 50
GUESSED = ("null", "bool", "int", "float", "timestamp")  # types that YAML gives a word by its look
TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")  # YAML 1.1, in any case


class Word(str):
    """A word without quotes that YAML would not read as text: ``true``, ``12``, ``1.5``, ``2026-11-27``, ``null`` or nothing."""

    __slots__ = ()

    @property
    def null(self) -> bool:
        """Whether it is YAML's null."""
        return self in ("", "~", "null", "Null", "NULL")


class _Loader(yaml.SafeLoader):
    """The safe loader with ``Word`` for guessed types; a key that stands twice in a mapping is an error."""

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, ScalarNode) and key.value in seen and key.value != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value if isinstance(key, ScalarNode) else "")
        return super().construct_mapping(node, deep)


def _as_word(loader: _Loader, node: ScalarNode) -> Word:  # noqa: ARG001 (PyYAML calls it with the loader)
    return Word(node.value)


for _guessed in GUESSED:
    _Loader.add_constructor(f"tag:yaml.org,2002:{_guessed}", _as_word)


def read_yaml(text: str) -> Any:
    """The mappings, lists, texts and words of one YAML document; ``None`` for an empty one.

    Raises:
        ValueError: no valid YAML (says where), a key that stands twice, nested too deeply, or too large with its aliases.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ValueError("not valid YAML: nested too deeply") from error
    finally:
        loader.dispose()


def _count(node: Node, counted: dict[int, int | None]) -> int:
    """Values of a node with its aliases written out; each node is visited once."""
    if id(node) in counted:
        found = counted[id(node)]
        if found is None:
            raise ValueError("not valid YAML: an alias contains itself")
        return found
    counted[id(node)] = None
    children: list[Node] = []
    if isinstance(node, SequenceNode):
        children = node.value
    elif isinstance(node, MappingNode):
        children = [part for pair in node.value for part in pair]
    total = 1 + sum(_count(child, counted) for child in children)
    if total > MAX_VALUES:
        raise ValueError(f"not valid YAML: more than {MAX_VALUES:,} values with its aliases written out")
    counted[id(node)] = total
    return total
