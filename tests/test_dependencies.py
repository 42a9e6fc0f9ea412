"""What the code imports is declared in `setup.py`; what is declared is pinned in `constraints.txt`; the wheel says that it is typed."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OPTIONAL = {"flash-attn"}  # needs a GPU; nobody tests it here


def normal(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> dict[str, set[str]]:
    """Names of distributions that `setup.py` declares: under "" those of every installation, and those of each extra."""
    (call,) = [
        node
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setup"
    ]
    fields = {keyword.arg: keyword.value for keyword in call.keywords}
    extras = ast.literal_eval(fields["extras_require"])
    groups = {"": ast.literal_eval(fields["install_requires"]), **extras}
    return {
        extra: {normal(re.match(r"[\w.-]+", line)[0]) for line in lines}  # type: ignore[index]
        for extra, lines in groups.items()
    }


def imported(folder: str) -> dict[str, str]:
    """Third-party packages that a folder's code imports, each with a file that does."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                found.setdefault(name.split(".")[0], str(path.relative_to(ROOT)))
    own = {"rb", "eval", "tests"}
    return {name: file for name, file in found.items() if name not in sys.stdlib_module_names | own}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("rb", ("", "points", "clouds", "http", "kernels", "serve", "mine")),
        ("eval", ("",)),
        ("tests", ("", "dev", "docs", "clouds", "serve", "mine")),
    ],
)
def test_what_is_imported_is_declared(folder: str, extras: tuple[str, ...]) -> None:
    groups = declared()
    names = set().union(*(groups[extra] for extra in extras))
    distributions = packages_distributions()
    missing = [
        f"{file} imports {package}: declare {' or '.join(distributions.get(package, [package]))} in setup.py"
        for package, file in imported(folder).items()
        if not names & {normal(name) for name in distributions.get(package, [package])}
    ]
    assert not missing, "\n".join(missing)


def test_what_is_declared_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {normal(line.split("==")[0]) for line in lines if "==" in line}
    assert set().union(*declared().values()) - OPTIONAL <= pinned


def test_users_get_the_types() -> None:
    assert (ROOT / "rb" / "py.typed").is_file()
    assert '"rb": ["py.typed"]' in (ROOT / "setup.py").read_text()
