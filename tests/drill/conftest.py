"""Drills: trials too long for ``make test``. Every test in this folder is one; ``make drill`` runs them and shows the figures that they print."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them: pyproject.toml leaves the marker out unless ``-m drill`` asks for it."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.drill)
