"""Paths in a run: found when the run starts, and absolute from then on, so that a run folder can be used from any working directory.

A relative path is looked up in the working directory, then in the folder of the run file, then among the project's own files (the toy
foundation, ds_configs). ``output_dir`` is not looked up: it starts at the working directory. An absolute path that points into a checkout
of this project that is gone (another machine, a moved folder) is looked up in the one at hand.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path

from rb.core.config import DataConfig, DataSource, FoundationConfig, RunConfig
from rb.core.install import RUNS, find_shipped, project_file
from rb.core.run_file import load_run
from rb.core.run_layout import RUN_CONFIG

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
    found = path if path.is_file() else find_shipped(str(name), RUNS)
    if found is None:
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


def resolve_paths(config: RunConfig, *folders: Path, init_from: bool = True) -> RunConfig:
    """A run with every path absolute; an absolute one that exists stays as it is.

    Args:
        config: the run.
        folders: where relative paths are looked up after the working directory.
        init_from: whether ``init_from`` must exist; a run that goes on does not read it again.

    Raises:
        ValueError: a path does not exist: names its key, its value and the places tried.
    """
    start = config.init_from
    if start is not None:
        start = find_path("init_from", start, *folders) if init_from else absolute(start)
    return replace(
        config,
        output_dir=absolute(config.output_dir),
        init_from=start,
        model=replace(config.model, foundation=resolve_foundation(config.model.foundation, *folders)),
        data=_resolve_data(config.data, folders),
        train=replace(config.train, ds_config=find_path("train.ds_config", config.train.ds_config, *folders)),
    )


def resolve_foundation(foundation: FoundationConfig, *folders: Path) -> FoundationConfig:
    """A foundation with every part that is given found and absolute; ``ValueError`` as ``resolve_paths``."""
    given = {field.name: getattr(foundation, field.name) for field in fields(foundation)}
    return FoundationConfig(
        **{name: value and find_path(f"model.foundation.{name}", value, *folders) for name, value in given.items()}
    )


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


def _resolve_data(data: DataConfig, folders: tuple[Path, ...]) -> DataConfig:
    found: dict[str, dict[str, tuple[DataSource, ...]]] = {}
    for part in ("train", "val"):
        listed: dict[str, tuple[DataSource, ...]] = getattr(data, part)
        found[part] = {
            modality: tuple(
                replace(source, manifest=find_path(f"data.{part}.{modality}[{i}].manifest", source.manifest, *folders))
                for i, source in enumerate(sources)
            )
            for modality, sources in listed.items()
        }
    return replace(data, train=found["train"], val=found["val"])
