"""Run files: YAML plus ``key=value`` overrides to a ``RunConfig`` and back. Unknown keys and wrong types are errors that name the key.

``${VAR}`` and ``${VAR:-default}`` in string values are replaced from the environment, so that a run file holds no path of one machine.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from rb.core.config import RunConfig

T = TypeVar("T")


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that a YAML file and ``a.b.c=value`` overrides describe.

    Raises:
        ValueError: the file is missing or no YAML mapping; a key is unknown (names the nearest) or a value does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"run file {path} does not exist; the project's own are in launch/runs/")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"run file {path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"run file {path} must hold a mapping of keys, found {type(tree).__name__}")
    for override in overrides:
        _apply_override(tree, override)
    try:
        return from_tree(RunConfig, tree)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _apply_override(tree: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator or not dotted:
        raise ValueError(f"override {override!r} must look like section.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"override {override!r}: {text!r} is not valid YAML: {error}") from error
    *sections, key = dotted.split(".")
    node = tree
    for section in sections:
        child = node.setdefault(section, {})
        if not isinstance(child, dict):
            raise ValueError(f"override {override!r}: {section!r} is not a section")
        node = child
    node[key] = value


def from_tree(cls: type[T], tree: Any, where: str = "") -> T:
    """A config dataclass from plain dicts and lists; errors name the dotted key."""
    if not isinstance(tree, dict):
        raise ValueError(f"{where or 'config'}: must be a mapping of keys, got {tree!r}")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in tree.items():
        dotted = f"{where}.{key}" if where else str(key)
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown key {dotted!r}; {hint}known keys: {', '.join(sorted(known))}")
        values[key] = _convert(hints[key], value, dotted)
    return cls(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return from_tree(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}: must be a list, got {value!r}")
        item = args[0]
        return tuple(_convert(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: must be a mapping, got {value!r}")
        return {str(k): _convert(args[1], v, f"{where}.{k}") for k, v in value.items()}
    return _scalar(hint, value, where)


def _scalar(hint: type, value: Any, where: str) -> Any:
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is float and not isinstance(value, bool):
        # YAML 1.1 reads 1e-4 as text; accept what Python reads as a number.
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    if hint is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return _expand(str(value), where)
    raise ValueError(f"{where}: must be of type {hint.__name__}, got {value!r}")


def _expand(text: str, where: str) -> str:
    def lookup(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(3)
        found = os.environ.get(name, default)
        if found is None:
            raise ValueError(f"{where}: environment variable {name} is not set (value {text!r})")
        return found

    return re.sub(r"\$\{(\w+)(:-([^}]*))?\}", lookup, text)


def to_tree(config: Any) -> Any:
    """The inverse of ``from_tree``: plain dicts and lists, every field present."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_tree(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, dict):
        return {key: to_tree(value) for key, value in config.items()}
    if isinstance(config, tuple | list):
        return [to_tree(value) for value in config]
    return config


def with_defaults(tree: Any) -> Any:
    """A run's tree as an older version wrote it, complete: fields that are new since then have their defaults.

    Raises:
        ValueError: it has a key or value that this version does not know.
    """
    return to_tree(from_tree(RunConfig, tree))


def dump_run(config: RunConfig) -> str:
    """The resolved run as YAML, every field written out."""
    return yaml.safe_dump(to_tree(config), sort_keys=False, allow_unicode=True, width=120)


def digest(config: Any) -> str:
    """sha256 of a config's canonical form; equal configs have equal digests."""
    return hashlib.sha256(json.dumps(to_tree(config), sort_keys=True).encode()).hexdigest()
