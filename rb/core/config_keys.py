"""Every key of a run file with its type, its default and the sentence under its field: what ``rb config keys`` prints.

The sentences are read from the source of the dataclasses, so they are written once: there. A test fails where one is missing.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rb.core.config import RunConfig


@dataclass(frozen=True)
class Key:
    """One key of a run file.

    Attributes:
        name: dotted, as in an override; ``*`` stands for a modality's or a loss term's name, ``[]`` for an item of a list.
        type: as in the source.
        default: the value without a run file; ``dataclasses.MISSING`` where the key must be given.
        sentence: what it means; empty where the field has none.
    """

    name: str
    type: str
    default: Any
    sentence: str


def all_keys(config_class: type = RunConfig, prefix: str = "") -> Iterator[Key]:
    """The keys of a config dataclass, those of its sections included, in the order of the source."""
    sentences, hints = _sentences(config_class), typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        name = prefix + field.name
        section, marks = _section(hints[field.name])
        if section is not None and not marks:
            yield from all_keys(section, f"{name}.")
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        yield Key(name, str(field.type), default, sentences.get(field.name, ""))
        if section is not None:
            yield from all_keys(section, f"{name}{marks}.")


def config_classes(config_class: type = RunConfig) -> list[type]:
    """A config dataclass and all that its fields lead to."""
    found = [config_class]
    for hint in typing.get_type_hints(config_class).values():
        section, _ = _section(hint)
        if section is not None:
            found += [c for c in config_classes(section) if c not in found]
    return found


def fields_without_sentence(config_class: type) -> list[str]:
    """Names of the fields of one dataclass that have no sentence under them."""
    sentences = _sentences(config_class)
    return [field.name for field in dataclasses.fields(config_class) if not sentences.get(field.name)]


def _section(hint: Any) -> tuple[type | None, str]:
    """The dataclass that a type leads to, and what stands between: ``.*`` for a mapping, ``[]`` for a list."""
    if dataclasses.is_dataclass(hint):
        return typing.cast(type, hint), ""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict:
        section, marks = _section(args[1])
        return section, f".*{marks}"
    if origin is tuple:
        section, marks = _section(args[0])
        return section, f"[]{marks}"
    if origin in (types.UnionType, typing.Union):
        return _section(next(a for a in args if a is not type(None)))
    return None, ""


def _sentences(config_class: type) -> dict[str, str]:
    """Field name to the docstring under it, on one line."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(config_class))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for node, after in zip(tree.body, tree.body[1:], strict=False):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            found[node.target.id] = " ".join(after.value.value.split())
    return found
