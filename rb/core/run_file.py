"""Run files: YAML, ``base:`` and ``key=value`` overrides to a ``RunConfig`` and back. Unknown keys and wrong types are errors that name the key.

Other kinds of configuration are read in the same way (``load_config``: the job of ``rb mine``).

``base: FILE`` starts from another run file: FILE is looked for in the folder of the file that names it, then among the project's own
(launch/runs). A base may have a base. What a file says goes over its base: mappings merge key by key, at every depth (``data.train`` and
``model.loss_weights`` too); lists and single values replace; ``null`` takes away what the base says. Overrides come last. The resolved run
has no base.

``${VAR}`` and ``${VAR:-default}`` in string values are replaced from the environment, so that a run file holds no path of one machine.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from rb.core import strict_json
from rb.core.config import RunConfig, TrainConfig
from rb.core.files import sha256
from rb.core.install import RUNS, project_file
from rb.core.run_layout import RUN_CONFIG, RUN_ENVIRONMENT
from rb.core.run_yaml import FALSE, TRUE, Word, read_yaml, read_yaml_file

T = TypeVar("T")
BASE = "base"  # key of the run file that a run file starts from
MAX_SHOWN = 200  # letters of a wrong value in an error


def load_run(path: str | Path, overrides: Sequence[str] = (), keep_unset: bool = False) -> RunConfig:
    """The run that a YAML file and ``a.b.c=value`` overrides describe.

    Args:
        path: the run file.
        overrides: ``section.key=value``, the last one of a key counts.
        keep_unset: leave ``${VAR}`` as it is where VAR is not set (to look at a run, not to start it).

    Raises:
        ValueError: the file is missing or no YAML mapping; a key is unknown (names the nearest) or a value does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"run file {path} does not exist; `rb runs list` shows the project's own (launch/runs/)")
    tree = read_tree(path, _project_run, "run file ")
    if path.name == RUN_CONFIG:
        tree = with_pool(tree, *_recorded(path.parent))
    return load_config(RunConfig, path, tree, overrides, keep_unset)


def load_config(
    cls: type[T], path: Path, tree: dict[str, Any], overrides: Sequence[str] = (), keep_unset: bool = False
) -> T:
    """The configuration of a class from the keys of its file (``read_tree``), with overrides over them.

    Args:
        path: the file, for errors.
        overrides, keep_unset: as of ``load_run``.

    Raises:
        ValueError: a key is unknown (names the nearest) or a value does not fit.
    """
    for override in overrides:
        _apply_override(cls, tree, override)
    if keep_unset:
        tree = _keep_unset(tree)
    try:
        return from_tree(cls, tree)
    except ValueError as error:
        raise ValueError(f"{path}: {str(error)[: strict_json.MAX_MESSAGE]}") from error


def read_tree(
    path: Path, own: Callable[[str], Path | None], kind: str = "", above: tuple[Path, ...] = ()
) -> dict[str, Any]:
    """The keys of a configuration file with those of its bases under them; without ``base``.

    Args:
        path: an existing file.
        own: the project's own file of a base's name; none where it has none. It is looked for after the folder of the file that names it.
        kind: put before the file's name in errors: "run file ".
        above: the files whose base this one is, the first file first.

    Raises:
        ValueError: no YAML mapping, a base that does not exist, or a file that is its own base.
    """
    chain = (*above, path.resolve())
    if path.resolve() in above:
        raise ValueError(f"{kind}{above[0]}: base leads back to a file: {' -> '.join(p.name for p in chain)}")
    try:
        tree = read_yaml_file(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{kind}{path}: {error}") from error
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ValueError(f"{kind}{path} must hold a mapping of keys, found {type(tree).__name__}")
    base = tree.pop(BASE, None)
    if base is None or (isinstance(base, Word) and base.null):
        return tree
    if not isinstance(base, str):
        raise ValueError(f"{kind}{path}: base: must be the path of one file, got {_short(base)}")
    name = _expand(base, f"{kind}{path}: base")
    mine = own(name)
    places = [path.parent / name, *([mine] if mine is not None else [])]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        looked = " and ".join(str(place) for place in places)
        raise ValueError(f"{kind}{path}: base: {base} does not exist; looked at {looked}")
    return merge(read_tree(found, own, kind, chain), tree)


def _project_run(name: str) -> Path | None:
    return project_file(f"{RUNS}/{name}")


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` on top of ``under``: mappings merge at every depth, all else replaces, ``null`` takes away what is under it."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            merged[key] = merge(below, value)
        elif key in merged and _is_null(value):
            del merged[key]
        else:
            merged[key] = value
    return merged


def with_pool(tree: Mapping[str, Any], ranks: int | None, pool: int | None = None) -> dict[str, Any]:
    """The tree of a run of before ``train.contrastive_batch_size``, with it: there ITC and ITM contrasted micro-batch x ranks samples.

    Nothing is added where that is the global batch, which the field's default means.

    Args:
        tree: of a run folder or a checkpoint.
        ranks: that trained it; none where that is not recorded, which leaves the tree as it is.
        pool: what a newer version recorded as it went on with the run.
    """
    train = tree.get("train")
    if not isinstance(train, Mapping) or "contrastive_batch_size" in train or not (ranks or pool):
        return dict(tree)
    sizes = from_tree(TrainConfig, {k: v for k, v in train.items() if k.endswith("_batch_size")}, "train")
    micro = sizes.micro_batch_size
    if not isinstance(micro, int):
        return dict(tree)  # newer than the field
    pool = pool or micro * (ranks or 1)
    return (
        dict(tree) if pool == sizes.global_batch_size else {**tree, "train": {**train, "contrastive_batch_size": pool}}
    )


def _recorded(run_dir: Path) -> tuple[int | None, int | None]:
    """Ranks and pool as a run folder's own record says them; none where it does not."""
    try:
        place = strict_json.parse((run_dir / RUN_ENVIRONMENT).read_bytes(), RUN_ENVIRONMENT)
    except (OSError, ValueError):
        return None, None
    found = [place.get(key) if isinstance(place, dict) else None for key in ("ranks", "contrastive_batch_size")]
    ranks, pool = (value if isinstance(value, int) and value > 0 else None for value in found)
    return ranks, pool


def _apply_override(cls: type, tree: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator or not dotted:
        raise ValueError(f"override {override!r} must look like section.key=value")
    if dotted == BASE:
        raise ValueError(f"override {override!r}: base is for files; name the file itself in the command")
    try:
        value = read_yaml(text)
    except ValueError as error:
        if not _is_text(cls, dotted):
            raise ValueError(f"override {override!r}: {error}") from error
        value = text
    quoted = isinstance(value, str) and text.startswith(("'", '"'))
    if _is_text(cls, dotted) and not quoted and not Word(text.strip()).null:
        value = text  # as it is written: a folder's name may hold " #", ": " or brackets
    *sections, key = dotted.split(".")
    node = tree
    for section in sections:
        child = node.setdefault(section, {})
        if not isinstance(child, dict):
            raise ValueError(f"override {override!r}: {section!r} is not a section")
        node = child
    node[key] = value


def _is_text(cls: Any, dotted: str) -> bool:
    """Whether the field of a dotted key is a text."""
    key, _, rest = dotted.partition(".")
    hint = typing.get_type_hints(cls).get(key) if dataclasses.is_dataclass(cls) else None
    kinds = [a for a in typing.get_args(hint) if a is not type(None)] if type(None) in typing.get_args(hint) else [hint]
    return _is_text(kinds[0], rest) if rest else kinds == [str]


def from_tree(cls: type[T], tree: Any, where: str = "") -> T:
    """A config dataclass from plain dicts and lists; errors name the dotted key."""
    if not isinstance(tree, dict):
        raise ValueError(f"{where or 'config'}: must be a mapping of keys, got {_short(tree)}")
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


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, Word) and value.null)


def _short(value: Any) -> str:
    """A value for an error's one line; never more of it than that."""
    shown = repr(str(value) if isinstance(value, str) else value) if not _is_null(value) else "nothing"
    return shown if len(shown) <= MAX_SHOWN else shown[:MAX_SHOWN] + " ..."


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _one_of(args, value, where)
    if dataclasses.is_dataclass(hint):
        return from_tree(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}: must be a list, got {_short(value)}")
        item = args[0]
        return tuple(_convert(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: must be a mapping, got {_short(value)}")
        return {str(k): _convert(args[1], v, f"{where}.{k}") for k, v in value.items()}
    found = _word(hint, value, where) if isinstance(value, Word) else _plain(hint, value, where)
    if found is None:
        raise ValueError(f"{where}: must be of type {hint.__name__}, got {_short(value)}")
    if isinstance(found, float) and not math.isfinite(found):
        raise ValueError(f"{where}: must be a finite number, got {_short(value)}")
    return found


def _one_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """A value of a field that may also be empty, or one of some words."""
    if type(None) in kinds and _is_null(value):
        return None
    words = [word for one in kinds if typing.get_origin(one) is typing.Literal for word in typing.get_args(one)]
    if value in words:
        return str(value)
    kind = next(one for one in kinds if one is not type(None) and typing.get_origin(one) is not typing.Literal)
    if not words:
        return _convert(kind, value, where)
    found = _word(kind, value, where) if isinstance(value, Word) else _plain(kind, value, where)
    if found is None:
        raise ValueError(f"{where}: must be of type {kind.__name__} or {', '.join(words)}, got {_short(value)}")
    return found


def _word(hint: type, word: Word, where: str) -> Any:
    """A word of a run file as the field's type; none where it does not fit."""
    if word.null:
        return None
    if hint is bool:
        return {**dict.fromkeys(TRUE, True), **dict.fromkeys(FALSE, False)}.get(word.lower())
    if hint is int:
        return int(word) if re.fullmatch(r"[-+]?(0|[1-9][0-9_]*)", word) else None
    if hint is float and word.lower() not in (*TRUE, *FALSE):
        return _float(word)
    return _expand(str(word), where) if hint is str else None


def _plain(hint: type, value: Any, where: str) -> Any:
    """A quoted text of a run file, or a value of Python, as the field's type; none where it does not fit."""
    if hint is bool or isinstance(value, bool):
        return value if hint is bool and isinstance(value, bool) else None
    if hint is str:
        return _expand(str(value), where) if isinstance(value, str | int | float) else None
    if hint is int:
        return value if isinstance(value, int) else None
    # YAML 1.1 reads 1e-4 as text; accept what Python reads as a number.
    return _float(value) if hint is float and isinstance(value, str | int | float) else None


def _float(value: str | float) -> float | None:
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _expand(text: str, where: str) -> str:
    def lookup(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(3)
        found = os.environ.get(name, default)
        if found is None:
            raise ValueError(f"{where}: environment variable {name} is not set (value {text!r})")
        return found

    return re.sub(r"\$\{(\w+)(:-([^}]*))?\}", lookup, text)


def _keep_unset(tree: Any) -> Any:
    """A tree whose variables that are not set have themselves as default: ``${VAR}`` expands to ``${VAR}``."""
    if isinstance(tree, dict):
        return {key: _keep_unset(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_keep_unset(value) for value in tree]
    if isinstance(tree, str) and not isinstance(tree, Word):
        return re.sub(r"\$\{(\w+)\}", lambda m: m[0] if m[1] in os.environ else f"${{{m[1]}:-{m[0][:-1]}}}}}", tree)
    return tree


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
    return sha256(json.dumps(to_tree(config), sort_keys=True))
