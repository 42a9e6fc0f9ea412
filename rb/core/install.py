"""Where the project's own files are: beside ``rb/`` in a checkout, inside the package in a wheel. The only file that knows.

A project file is named by its path in the checkout, such as ``ds_configs/zero2.json``, ``launch/runs/toy_opt.yaml`` or
``rb/toy/foundation/blip2-opt``, and found under that name from any working directory. ``setup.py`` puts the folders of ``SHIPPED`` into
the wheel as ``rb/shipped/...``.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]  # the folder rb/
RUNS, ABLATIONS, EVALUATIONS, DS_CONFIGS = "launch/runs", "launch/ablations", "launch/evaluations", "ds_configs"
SHIPPED = (DS_CONFIGS, RUNS, ABLATIONS, EVALUATIONS)  # folders outside rb/ that travel in the wheel


def checkout() -> Path | None:
    """The checkout that this package lies in; none where it was installed from a wheel."""
    root = PACKAGE.parent
    return root if (root / "setup.py").is_file() and (root / RUNS).is_dir() else None


def project_file(name: str | Path) -> Path | None:
    """Absolute path of a project file or folder, by its path in the checkout; none where it does not exist."""
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts or not parts:
        return None
    root = checkout()
    if parts[0] == PACKAGE.name:
        found = PACKAGE.parent / name
    elif root is not None:
        found = root / name
    else:
        found = PACKAGE / "shipped" / name
    return found if found.exists() else None


def find_file(name: str | Path) -> Path | None:
    """``name`` from the working directory if it exists there, else the project file of that name; none if neither is there."""
    return Path(name).resolve() if Path(name).exists() else project_file(name)


def shipped_files(folder: str) -> list[Path]:
    """The files of one of the folders in ``SHIPPED``, by name."""
    found = project_file(folder)
    return sorted(path for path in found.iterdir() if path.suffix in (".yaml", ".json")) if found else []


def find_shipped(name: str, *folders: str) -> Path | None:
    """The file in ``folders`` that ``name`` means: its file name, with or without ``.yaml``; none if there is none."""
    return next((path for folder in folders for path in shipped_files(folder) if name in (path.name, path.stem)), None)


def import_path() -> dict[str, str]:
    """The environment of this process, with which a Python that it starts imports this very package."""
    paths = [str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """The version of each package, without importing it; "not installed" where it is not there."""
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def git_commit() -> str:
    """The commit of the checkout that this package lies in, with "-dirty" where files differ from it; else "unknown".

    A package that is installed inside another project's checkout does not take that project's commit.
    """
    root = checkout()
    if root is None:
        return "unknown"
    try:
        if Path(_git(root, "rev-parse", "--show-toplevel")).resolve() != root:
            return "unknown"
        return _git(root, "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.strip()
