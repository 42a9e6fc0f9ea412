"""Paths in a run: found when the run starts, and absolute from then on, so that a run folder can be used from any working directory.

A relative path is looked up in the working directory, then in the folder of the run file, then among the project's own files (the toy
foundation, ds_configs). ``output_dir`` is not looked up: it starts at the working directory. An absolute path that points into a checkout
of this project that is gone (another machine, a moved folder) is looked up in the one at hand.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from pathlib import Path

from rb.core.config import DataConfig, DataSource, FoundationConfig, RunConfig
from rb.core.install import RUNS, find_file, find_shipped, project_file
from rb.core.run_file import load_run
from rb.core.run_layout import RUN_CONFIG
from rb.core.urls import is_url

Find = Callable[[str, str], str]  # (key, value) -> path
OWN_FOLDERS = ("rb", "ds_configs")  # of the project, in which a run's paths may point


def open_run(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """The run of a run file as it starts: ``load_run``, every path found and absolute.

    Raises:
        ValueError: as ``load_run``; a path does not exist: names its key, its value and the places tried.
    """
    path = find_run_file(path)
    return resolve_paths(load_run(path, list(overrides)), path.parent)


def find_run_file(name: str | Path) -> Path:
    """The run file that a path, a run folder, or the name of one of the project's own runs means.

    Raises:
        ValueError: there is none.
    """
    path = Path(name)
    if path.is_dir() and (path / RUN_CONFIG).is_file():
        return path / RUN_CONFIG
    found = path if path.is_file() else find_file(path) or find_shipped(str(name), RUNS)
    if found is None or not found.is_file():
        raise ValueError(
            f"{name}: no run file, run folder or name of one of the project's runs; `rb runs list` shows those"
        )
    return found


def open_foundation(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """The run of a run file for jobs that read its frozen model alone: of its paths only the foundation's are looked up.

    Raises:
        ValueError: as ``open_run``.
    """
    path = find_run_file(path)
    config = load_run(path, list(overrides))
    foundation = resolve_foundation(config.model.foundation, path.parent)
    return replace(config, model=replace(config.model, foundation=foundation))


def run_places(run_dir: Path, config: RunConfig) -> list[Path]:
    """Where relative paths of a run folder's configuration are looked up after the working directory.

    Runs of older versions stored paths as they were given, relative to where training was started: the folder above ``output_dir``,
    which is a parent of the run folder, wherever both were moved.
    """
    above = () if Path(config.output_dir).is_absolute() else run_dir.parents[: len(Path(config.output_dir).parts) + 1]
    return [run_dir, *above]


def resolve_paths(config: RunConfig, *folders: Path, init_from: bool = True) -> RunConfig:
    """A run with every path absolute; an absolute one that exists stays as it is.

    Args:
        config: the run.
        folders: where relative paths are looked up after the working directory.
        init_from: whether ``init_from`` must exist; a run that goes on does not read it again.

    Raises:
        ValueError: a path does not exist: names its key, its value and the places tried.
    """

    def find(key: str, value: str) -> str:
        return absolute(value) if key == "init_from" and not init_from else find_path(key, value, *folders)

    return replace(_with_paths(config, find), output_dir=absolute(config.output_dir))


def view_run(name: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """A run to look at, on a machine that need not have its files or variables.

    Paths that exist are absolute, others are as written; ``${VAR}`` stays where VAR is not set.

    Args:
        name: a run file, a run folder, or the name of one of the project's own runs.
        overrides: ``section.key=value``.

    Raises:
        ValueError: as ``load_run``.
    """
    path = find_run_file(name)
    config = load_run(path, list(overrides), keep_unset=True)

    def find(key: str, value: str) -> str:
        try:
            return find_path(key, value, path.parent)
        except ValueError:
            return value

    found = _with_paths(config, find)
    return found if "${" in config.output_dir else replace(found, output_dir=absolute(config.output_dir))


def resolve_foundation(foundation: FoundationConfig, *folders: Path) -> FoundationConfig:
    """A foundation with every part that is given found and absolute; ``ValueError`` as ``resolve_paths``."""
    return _foundation_with_paths(foundation, lambda key, value: find_path(key, value, *folders))


def find_path(key: str, value: str, *folders: Path) -> str:
    """The absolute path that a value means.

    Raises:
        ValueError: there is no such file or folder: names the key, the value and the places tried.
    """
    places = [absolute(folder / value) for folder in (Path(), *folders)]
    tried = list(dict.fromkeys(places))
    for place in tried:
        if Path(place).exists():
            return place
    own = _own_file(Path(value))
    if own is not None:
        return str(own)
    asked = "" if Path(value).is_absolute() else f"; looked at {', '.join(tried)} and among the project's own files"
    raise ValueError(f"{key}: {value} does not exist{asked}; correct it in the run file, or give {key}=PATH")


def absolute(path: str | Path) -> str:
    """The path from the root, links as they are (a data folder may be a link to another disk)."""
    return os.path.abspath(path)  # noqa: PTH100


def _own_file(path: Path) -> Path | None:
    if not path.is_absolute():
        return project_file(path)
    tails = (Path(*path.parts[i:]) for i, part in enumerate(path.parts) if part in OWN_FOLDERS)
    return next((found for tail in tails if (found := project_file(tail)) is not None), None)


def _with_paths(config: RunConfig, find: Find) -> RunConfig:
    """A run with every path but ``output_dir`` replaced by what ``find`` makes of it."""
    return replace(
        config,
        init_from=config.init_from and find("init_from", config.init_from),
        model=replace(config.model, foundation=_foundation_with_paths(config.model.foundation, find)),
        data=replace(
            config.data,
            train=_data_with_paths("train", config.data, find),
            val=_data_with_paths("val", config.data, find),
        ),
        train=replace(config.train, ds_config=find("train.ds_config", config.train.ds_config)),
    )


def _foundation_with_paths(foundation: FoundationConfig, find: Find) -> FoundationConfig:
    given = {field.name: getattr(foundation, field.name) for field in fields(foundation)}
    return FoundationConfig(**{k: value and find(f"model.foundation.{k}", value) for k, value in given.items()})


def _data_with_paths(part: str, data: DataConfig, find: Find) -> dict[str, tuple[DataSource, ...]]:
    listed: dict[str, tuple[DataSource, ...]] = getattr(data, part)
    return {
        modality: tuple(
            source
            if is_url(source.manifest)
            else replace(source, manifest=find(f"data.{part}.{modality}[{i}].manifest", source.manifest))
            for i, source in enumerate(sources)
        )
        for modality, sources in listed.items()
    }
